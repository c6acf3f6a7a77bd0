//! Modules.

use crate::driver::args::{In, Out, Text};
use crate::driver::engine::{LoadCode, LoadError, engine};
use crate::driver::image;
use crate::driver::session::Session;
use crate::driver::state::{Function, Loaded};
use crate::driver::status::{Result, Status};

/// CU_JIT_ERROR_LOG_BUFFER and its _SIZE_BYTES.
const ERROR_LOG: (i32, i32) = (5, 6);

fn status_of(code: LoadCode) -> Status {
    match code {
        LoadCode::InvalidPtx => Status::INVALID_PTX,
        LoadCode::NoBinary => Status::NO_BINARY_FOR_GPU,
        LoadCode::InvalidImage => Status::INVALID_IMAGE,
        LoadCode::UnsupportedPtx => Status::UNSUPPORTED_PTX_VERSION,
        LoadCode::OutOfMemory => Status::OUT_OF_MEMORY,
    }
}

impl Session {
    fn load(&mut self, out: &Out<u64>, image: &[u8]) -> std::result::Result<(), (Status, String)> {
        out.check().map_err(|status| (status, String::new()))?;
        let loaded = match engine() {
            Some(engine) => engine.load(image, &self.memory),
            None => {
                let message = "no engine to execute modules".to_owned();
                return Err((Status::NOT_SUPPORTED, message));
            }
        };
        let module = loaded.map_err(|LoadError { code, message }| (status_of(code), message))?;
        let handle = self.handle();
        let (context, kernels) = (self.context, module.kernels());
        self.modules.insert(handle, Loaded { context, module, kernels });
        out.set(handle).map_err(|status| (status, String::new()))
    }

    fn load_or_say(&mut self, out: &Out<u64>, image: &[u8]) -> Result {
        self.load(out, image).map_err(|(status, message)| {
            eprintln!("cuda-emulator: {}: {message}", self.call);
            status
        })
    }

    /// Handle of a module's kernel; the same each time.
    fn function(&mut self, module: u64, kernel: usize) -> Result<u64> {
        let found = self.functions.iter().find(|(_, f)| f.module == module && f.kernel == kernel);
        if let Some((&handle, _)) = found {
            return Ok(handle);
        }
        let loaded = self.modules.get(&module).ok_or(Status::INVALID_HANDLE)?;
        let info = loaded.kernels.get(kernel).ok_or(Status::NOT_FOUND)?.clone();
        let handle = self.handle();
        let function =
            Function { module, kernel, info, dynamic_shared: None, carveout: -1, large_clusters: false };
        self.functions.insert(handle, function);
        Ok(handle)
    }

    fn module(&self, module: u64) -> Result<&Loaded> {
        self.modules.get(&module).ok_or(Status::INVALID_HANDLE)
    }
}

api! {
    context fn cuModuleLoadData(module: Out<u64>, image: In<u8>) |s| {
        let image = image::read(image)?;
        s.load_or_say(&module, &image)
    }

    context fn cuModuleLoadFatBinary(module: Out<u64>, image: In<u8>) |s| {
        let image = image::read(image)?;
        s.load_or_say(&module, &image)
    }

    context fn cuModuleLoadDataEx(
        module: Out<u64>, image: In<u8>, count: u32, options: In<i32>, values: In<u64>,
    ) |s| {
        let image = image::read(image)?;
        let (status, message) = match s.load(&module, &image) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        eprintln!("cuda-emulator: {}: {message}", s.call);
        let option = |wanted: i32| -> Result<u64> {
            let at = (0..count as usize).find(|&i| options.at(i) == Ok(wanted)).ok_or(Status::NOT_FOUND)?;
            values.at(at)
        };
        if let (Ok(buffer), Ok(size)) = (option(ERROR_LOG.0), option(ERROR_LOG.1)) {
            let log = Out::<u8>::from_argument(buffer as *mut u8);
            let _ = crate::driver::args::put_text(&log, size as usize, message.as_bytes());
        }
        Err(status)
    }

    context fn cuModuleLoad(module: Out<u64>, path: Text) |s| {
        let path = path.get()?;
        let mut image = std::fs::read(&path).map_err(|error| {
            eprintln!("cuda-emulator: cuModuleLoad: {path}: {error}");
            Status::FILE_NOT_FOUND
        })?;
        if image.is_empty() {
            return Err(Status::INVALID_IMAGE);
        }
        // So that a text ends.
        image.push(0);
        let image = image::read(In::from_argument(image.as_ptr()))?;
        s.load_or_say(&module, &image)
    }

    release fn cuModuleUnload(module: u64) |s| {
        s.module(module)?;
        let context = s.context;
        // Kernels of it may be pending.
        s.synchronise_context(context);
        s.functions.retain(|_, f| f.module != module);
        s.modules.remove(&module);
        Ok(())
    }

    context fn cuModuleGetFunction(function: Out<u64>, module: u64, name: Text) |s| {
        function.check()?;
        let name = name.get()?;
        let kernel = s.module(module)?.kernels.iter().position(|k| k.name == name).ok_or(Status::NOT_FOUND)?;
        function.set(s.function(module, kernel)?)
    }

    context fn cuModuleGetFunctionCount(count: Out<u32>, module: u64) |s| {
        count.set(s.module(module)?.kernels.len() as u32)
    }

    context fn cuModuleEnumerateFunctions(functions: Out<u64>, count: u32, module: u64) |s| {
        let kernels = s.module(module)?.kernels.len().min(count as usize);
        for kernel in 0..kernels {
            functions.set_at(kernel, s.function(module, kernel)?)?;
        }
        Ok(())
    }

    context fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: u64, name: Text) |s| {
        let (start, len) = s.module(module)?.module.global(&name.get()?).ok_or(Status::NOT_FOUND)?;
        address.set_some(start);
        bytes.set_some(len as usize);
        Ok(())
    }

    // CU_MODULE_EAGER_LOADING.
    plain fn cuModuleGetLoadingMode(mode: Out<i32>) |_| { mode.set(1) }
}
