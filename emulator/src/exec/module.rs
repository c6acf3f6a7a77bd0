//! A loaded module: kernels lowered, variables placed in device memory and initialised.

use std::collections::HashMap;
use std::sync::Arc;

use super::lower::{self, LowerError, Symbols};
use super::op::{Debug, Program};
use crate::memory::Memory;
use crate::ptx::ast::{self, Space};

/// Why a module cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The host processor is too old.
    #[error("this processor has no AVX2 and FMA, which the emulator's lane loops are compiled for")]
    Processor,
    /// The text is no PTX that is understood.
    #[error(transparent)]
    Parse(#[from] crate::ptx::ParseError),
    /// An instruction is not known.
    #[error("kernel {kernel}: {source}")]
    Lower {
        /// The kernel.
        kernel: String,
        /// What and where.
        source: LowerError,
    },
    /// A variable does not fit the device.
    #[error("PTX line {line}: variable `{name}` of {bytes} bytes does not fit device memory")]
    OutOfMemory {
        /// Its name.
        name: String,
        /// Its size.
        bytes: u64,
        /// PTX line.
        line: u32,
    },
    /// A variable's initialiser names something that is not there.
    #[error("PTX line {line}: the initialiser of `{name}` names `{symbol}`, which is declared nowhere")]
    UnknownSymbol {
        /// The variable.
        name: String,
        /// What it names.
        symbol: String,
        /// PTX line.
        line: u32,
    },
}

/// Kernels and variables of one PTX text.
pub struct Module {
    kernels: Vec<Arc<Program>>,
    globals: HashMap<String, (u64, u64)>,
}

impl Module {
    /// Parses and lowers a PTX text and places its variables in `memory`.
    ///
    /// # Errors
    /// The first thing that is not understood, with its line and text.
    pub fn load(text: &str, memory: &Memory) -> Result<Module, LoadError> {
        if !super::isa::supported() {
            return Err(LoadError::Processor);
        }
        let module = crate::ptx::parse(text)?;
        let globals = place(&module, memory)?;
        let sources = module.functions.iter().flat_map(|f| &f.body);
        let debug = Arc::new(Debug {
            lines: text.lines().map(str::to_owned).collect(),
            files: module.files.clone(),
            sources: sources.filter_map(|i| Some((i.line, i.source?))).collect(),
        });
        let symbols = Symbols { global: globals.iter().map(|(n, (a, _))| (n.clone(), *a)).collect() };
        let mut kernels = Vec::new();
        for kernel in module.functions.iter().filter(|f| f.entry && f.defined) {
            let lowered = lower::lower(&module, kernel, &symbols, debug.clone());
            let program =
                lowered.map_err(|source| LoadError::Lower { kernel: kernel.name.clone(), source })?;
            kernels.push(Arc::new(program));
        }
        Ok(Module { kernels, globals })
    }

    /// The kernels.
    pub fn kernels(&self) -> &[Arc<Program>] {
        &self.kernels
    }

    /// A kernel by name.
    pub fn kernel(&self, name: &str) -> Option<&Arc<Program>> {
        self.kernels.iter().find(|k| k.name() == name)
    }

    /// Address and bytes of a `.global` or `.const` variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.globals.get(name).copied()
    }

    /// Gives the variables' memory back.
    pub fn unload(&self, memory: &Memory) {
        for (address, _) in self.globals.values() {
            memory.arena().free(*address);
        }
    }
}

fn place(module: &ast::Module, memory: &Memory) -> Result<HashMap<String, (u64, u64)>, LoadError> {
    let in_memory = |v: &&ast::Variable| matches!(v.space, Space::Global | Space::Const) && v.bytes > 0;
    let variables: Vec<&ast::Variable> = module.variables.iter().filter(in_memory).collect();
    let mut placed = HashMap::new();
    for v in &variables {
        let label = format!("variable {}", v.name);
        let Some(address) = memory.arena().allocate(v.bytes, label) else {
            return Err(LoadError::OutOfMemory { name: v.name.clone(), bytes: v.bytes, line: v.line });
        };
        placed.insert(v.name.clone(), (address, v.bytes));
    }
    for v in variables {
        let (address, bytes) = placed[&v.name];
        let mut image = vec![0u8; bytes as usize];
        let len = v.init.len().min(image.len());
        image[..len].copy_from_slice(&v.init[..len]);
        for (offset, symbol, addend) in &v.relocations {
            let Some((target, _)) = placed.get(symbol) else {
                let (name, symbol) = (v.name.clone(), symbol.clone());
                return Err(LoadError::UnknownSymbol { name, symbol, line: v.line });
            };
            if let Some(at) = image.get_mut(*offset..*offset + 8) {
                at.copy_from_slice(&target.wrapping_add(*addend as u64).to_le_bytes());
            }
        }
        // SAFETY: the range was just allocated with these many bytes and nobody else knows it.
        unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), address as *mut u8, image.len()) };
        memory.arena().mark_valid(address, bytes);
    }
    Ok(placed)
}
