//! Build: the CUDA kernels, by nvcc for a GPU (feature `cuda`) or by a C++ compiler for their emulation (`cuda-emulation`).
//!
//! Without either feature there is nothing to do.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
    println!("cargo::rerun-if-changed=src/kernels/cuda");
    #[cfg(feature = "cuda")]
    ptx::compile();
    #[cfg(feature = "cuda-emulation")]
    emulation::compile();
}

#[cfg(feature = "cuda")]
mod ptx {
    use std::env;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// The oldest GPUs with tensor cores for bf16: Ampere.
    const OLDEST: u32 = 80;

    /// Compiles all kernels to PTX, which the driver turns into code of the GPU it finds.
    pub(super) fn compile() {
        for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP", "PATH"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let capability = env::var("CUDA_COMPUTE_CAP").ok().and_then(|text| text.replace('.', "").parse().ok());
        let capability = capability.unwrap_or(OLDEST).max(OLDEST);
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.ptx");
        let nvcc = nvcc();
        let status = Command::new(&nvcc)
            .args(["--ptx", "-std=c++17", "-O3", "-Werror", "all-warnings"])
            .arg(format!("-arch=compute_{capability}"))
            .arg("-o")
            .arg(&out)
            .arg("src/kernels/cuda/all.cu")
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{} could not compile the kernels ({status})", nvcc.display()),
            Err(error) => panic!(
                "cannot run {}: {error}; feature 'cuda' needs a CUDA toolkit, found by NVCC, CUDA_HOME or PATH",
                nvcc.display()
            ),
        }
    }

    fn nvcc() -> PathBuf {
        if let Some(nvcc) = env::var_os("NVCC") {
            return nvcc.into();
        }
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
        let places = homes.chain([PathBuf::from("/usr/local/cuda")]).map(|home| home.join("bin/nvcc"));
        places.into_iter().find(|nvcc| Path::exists(nvcc)).unwrap_or_else(|| "nvcc".into())
    }
}

#[cfg(feature = "cuda-emulation")]
mod emulation {
    /// Compiles all kernels for this processor, with the emulator that launches them.
    pub(super) fn compile() {
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .file("src/kernels/cuda/emulation.cpp")
            .define("MIXPOOL_EMULATION", None)
            .opt_level(3)
            .debug(true)
            .warnings(true)
            .extra_warnings(true)
            .warnings_into_errors(true)
            .flag_if_supported("-march=native") // fused multiply-add, as on a GPU; tests run where they are built
            .flag("-Wno-unknown-pragmas")
            .flag("-fno-strict-aliasing") // lanes read what others show as bytes
            .flag("-U_FORTIFY_SOURCE") // fibers jump between stacks
            .compile("mixpool_emulated_kernels");
    }
}
