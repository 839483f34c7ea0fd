//! Kernels written by hand, and what they leave in memory.
#![allow(dead_code)] // every test program uses some of it

use virtual_gpu::Fault;
use virtual_gpu::memory::{Memory, Unwritten};
use virtual_gpu::ptx::{Launch, Module};
use virtual_gpu::statistics::{Counts, Statistics};

/// A launch of a kernel `test(out, in)` that is made of `body`.
pub(crate) struct Kernel {
    body: String,
    grid: u32,
    threads: u32,
    dynamic_shared: u32,
    seed: u64,
}

impl Kernel {
    /// One warp, natural order. `%out` and `%in` are the arguments, `%tid` the thread, `%rd9` and `%rd8` 4 bytes of `out` and `in` for
    /// it; registers %r0 to %r31, %f, %rd, %fd, %rs, %p are declared.
    pub(crate) fn new(body: &str) -> Self {
        Self { body: body.to_owned(), grid: 1, threads: 32, dynamic_shared: 0, seed: 0 }
    }

    pub(crate) fn grid(self, grid: u32) -> Self {
        Self { grid, ..self }
    }

    pub(crate) fn threads(self, threads: u32) -> Self {
        Self { threads, ..self }
    }

    pub(crate) fn dynamic_shared(self, dynamic_shared: u32) -> Self {
        Self { dynamic_shared, ..self }
    }

    pub(crate) fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    fn text(&self) -> String {
        format!(
            "
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry test(.param .u64 test_0, .param .u64 test_1)
{{
    .reg .pred %p<8>; .reg .b16 %rs<16>; .reg .b32 %r<32>; .reg .f32 %f<32>; .reg .b64 %rd<32>; .reg .f64 %fd<8>;
    .reg .b64 %out; .reg .b64 %in; .reg .b32 %thread;
    .shared .align 16 .b8 fixed[4096];
    .local .align 8 .b8 own[16];
    ld.param.u64 %out, [test_0];
    ld.param.u64 %in, [test_1];
    cvta.to.global.u64 %out, %out;
    cvta.to.global.u64 %in, %in;
    mov.u32 %thread, %tid.x;
    mul.wide.u32 %rd7, %thread, 4;
    add.s64 %rd9, %out, %rd7;
    add.s64 %rd8, %in, %rd7;
{}
    ret;
}}",
            self.body
        )
    }

    /// Runs it with `input` and an output of `words` words, unwritten; the output and the counts.
    pub(crate) fn run(&self, input: &[u32], words: usize) -> Result<(Vec<u32>, Counts), Fault> {
        let module = Module::parse(&self.text()).unwrap();
        let mut memory = Memory::new(1 << 20);
        let (out, source) =
            (memory.allocate(4 * words as u64).unwrap(), memory.allocate(4 * input.len() as u64).unwrap());
        let bytes: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write(source, &bytes)?;
        let parameters: Vec<u8> = [out, source].iter().flat_map(|address| address.to_le_bytes()).collect();
        let launch = Launch {
            grid: [self.grid, 1, 1],
            block: [self.threads, 1, 1],
            dynamic_shared: self.dynamic_shared,
            parameters: &parameters,
            seed: self.seed,
        };
        let mut statistics = Statistics::default();
        module.entry("test").unwrap().run(&launch, &mut memory, &mut statistics)?;
        let bytes = memory.read(out, 4 * words as u64, Unwritten::Allowed)?;
        let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        Ok((words, statistics.kernels.remove("test").unwrap()))
    }

    /// The fault that it must be.
    pub(crate) fn fault(&self, input: &[u32], words: usize) -> String {
        self.run(input, words).expect_err("a fault was planted").to_string()
    }
}

/// What lanes make of an input word each, by instructions from `%r0` (also as `%f0`) to `%r1`.
pub(crate) fn each(input: &[u32], instructions: &str) -> Vec<u32> {
    let body = format!(
        "ld.global.u32 %r0, [%rd8]; mov.b32 %f0, %r0; cvt.u64.u32 %rd0, %r0; {instructions} st.global.u32 [%rd9], %r1;"
    );
    Kernel::new(&body).threads(input.len() as u32).run(input, input.len()).unwrap().0
}

/// `each` of one word.
pub(crate) fn one(input: u32, instructions: &str) -> u32 {
    each(&[input], instructions)[0]
}

/// `one` of floats.
pub(crate) fn float(input: f32, instructions: &str) -> f32 {
    f32::from_bits(one(input.to_bits(), &format!("{instructions} mov.b32 %r1, %f1;")))
}
