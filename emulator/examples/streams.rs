//! Copies that hide behind kernels: four chunks go to the device, are worked on and come back, on two streams.
//!
//! Runs on the emulator through an unmodified cudarc, writes the modelled timeline as a Chrome trace and prints what
//! copying, computing and the whole took. `cargo run -p cuda-emulator --example streams [TRACE.json]`

use std::error::Error;
use std::ffi::{CString, c_char, c_void};

use cuda_emulator::install;
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;

/// data[i] = data[i] · 3 + 1 for i < n, in f32.
const PTX: &str = r"
.version 8.0
.target sm_90
.address_size 64

.visible .entry triple_plus_one(
    .param .u64 data,
    .param .u32 n
)
{
    .reg .pred %p;
    .reg .b32 %r<6>;
    .reg .f32 %f<3>;
    .reg .b64 %rd<4>;

    ld.param.u64 %rd0, [data];
    ld.param.u32 %r0, [n];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    setp.ge.u32 %p, %r4, %r0;
    @%p bra DONE;
    cvta.to.global.u64 %rd1, %rd0;
    mul.wide.u32 %rd2, %r4, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.f32 %f0, [%rd3];
    mov.f32 %f1, 0f3F800000;
    fma.rn.f32 %f2, %f0, 0f40400000, %f1;
    st.global.f32 [%rd3], %f2;
DONE:
    ret;
}
";

const CHUNKS: usize = 4;
const ELEMENTS: usize = 1 << 22;

/// A function of the emulator's own.
fn symbol(name: &str) -> Result<*mut c_void, Box<dyn Error>> {
    let name = CString::new(name)?;
    // SAFETY: both names are C strings; the library was loaded by `install` and stays.
    let address = unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        libc::dlsym(library, name.as_ptr())
    };
    if address.is_null() { Err("not the emulator".into()) } else { Ok(address) }
}

fn check(status: i32) -> Result<(), Box<dyn Error>> {
    if status == 0 { Ok(()) } else { Err(format!("CUDA error {status}").into()) }
}

fn trace(path: &str) -> Result<(), Box<dyn Error>> {
    // SAFETY: cuEmulatorTrace has this signature.
    let write: extern "C" fn(*const c_char) -> i32 =
        unsafe { std::mem::transmute(symbol("cuEmulatorTrace")?) };
    check(write(CString::new(path)?.as_ptr()))
}

/// Modelled time of the host, of copies, of kernels, in microseconds.
fn times() -> Result<[f64; 3], Box<dyn Error>> {
    type Times = extern "C" fn(*mut f64, *mut f64, *mut f64) -> i32;
    // SAFETY: cuEmulatorTimes has this signature.
    let read: Times = unsafe { std::mem::transmute(symbol("cuEmulatorTimes")?) };
    let [mut host, mut copies, mut kernels] = [0.0; 3];
    check(read(&mut host, &mut copies, &mut kernels))?;
    Ok([host, copies, kernels])
}

/// Modelled times in microseconds.
pub struct Times {
    /// Of all copies.
    pub copies: f64,
    /// Of all kernels.
    pub kernels: f64,
    /// From the first copy's start to the last one's end.
    pub together: f64,
    /// Of the host, set-up included.
    pub host: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "streams-trace.json".to_owned());
    let Times { copies, kernels, together, host } = run(&path)?;
    println!(
        "modelled: copies {copies:.1} us, kernels {kernels:.1} us, together {together:.1} us (host {host:.1} us)"
    );
    println!("trace: {path}");
    Ok(())
}

/// Runs the program, checks its results and writes the trace.
pub fn run(path: &str) -> Result<Times, Box<dyn Error>> {
    println!("driver: {}", install::install(false)?.display());
    let context = CudaContext::new(0)?;
    println!("device: {}", context.name()?);
    trace(path)?;

    let kernel = context.load_module(Ptx::from_src(PTX))?.load_function("triple_plus_one")?;
    let streams = [context.new_stream()?, context.new_stream()?];
    let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    // SAFETY: every element is written before anything reads one.
    let (mut sources, mut results) = unsafe {
        let pinned = || context.alloc_pinned_with_flags::<f32>(ELEMENTS, 0);
        let sources = (0..CHUNKS).map(|_| pinned()).collect::<Result<Vec<_>, _>>()?;
        (sources, (0..CHUNKS).map(|_| pinned()).collect::<Result<Vec<_>, _>>()?)
    };
    for (chunk, source) in sources.iter_mut().enumerate() {
        for (i, value) in source.as_mut_slice()?.iter_mut().enumerate() {
            *value = (chunk * ELEMENTS + i) as f32;
        }
    }

    let start = streams[0].record_event(timing)?;
    let mut buffers = Vec::new();
    for (chunk, (source, result)) in sources.iter().zip(&mut results).enumerate() {
        let stream = &streams[chunk % 2];
        let mut buffer = stream.clone_htod(source)?;
        let n = ELEMENTS as u32;
        let config = LaunchConfig::for_num_elems(n);
        // SAFETY: the arguments are those the PTX declares, the buffer has n elements.
        unsafe { stream.launch_builder(&kernel).arg(&mut buffer).arg(&n).launch(config)? };
        stream.memcpy_dtoh(&buffer, result)?;
        buffers.push(buffer);
    }
    streams[0].join(&streams[1])?;
    let end = streams[0].record_event(timing)?;
    let ms = start.elapsed_ms(&end)?;

    for (chunk, result) in results.iter().enumerate() {
        for (i, &value) in result.as_slice()?.iter().enumerate() {
            let expected = ((chunk * ELEMENTS + i) as f32).mul_add(3.0, 1.0);
            if value != expected {
                return Err(format!("chunk {chunk}, element {i}: {value}, not {expected}").into());
            }
        }
    }
    let [host, copies, kernels] = times()?;
    trace(path)?;
    Ok(Times { copies, kernels, together: f64::from(ms) * 1e3, host })
}
