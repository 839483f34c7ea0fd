//! Kernels: how fast every kernel runs at the shapes of micro and smol-135m, beside what this machine can do at most.
//!
//! `cargo bench --bench kernels` (one thread, as in scoring) or `cargo bench --bench kernels -- 2`
#![allow(clippy::print_stdout)]

#[path = "../src/allocator.rs"]
mod allocator;
#[path = "../tests/common/mod.rs"]
mod common;

use candle_core::Tensor;
use mixpool::kernels::{
    AdamW, Exec, Floats, Projection, RopeTable, adamw_step, add_assign, attention, attention_backward, cross_entropy,
    cross_entropy_backward, embedding, embedding_backward, linear, linear_backward, rms_norm, rms_norm_backward, rope,
    sum_of_squares, swiglu, swiglu_backward, weighted_sum,
};
use mixpool::model::ModelConfig;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Tokens of one pass, as in scoring.
const ROWS: usize = 512;
/// Flat vectors of the optimiser and the merge: 64 MiB each, beyond the caches.
const FLAT: usize = 1 << 24;
/// Dimensions of a random projection.
const COLUMNS: usize = 200;

fn main() {
    allocator::keep_freed_memory();
    let threads = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let bench = Bench::new(threads);
        println!("{threads} thread(s), multiply-add {:.0} Gop/s; {ROWS} rows\n", bench.peak / 1e9);
        println!("{:<34}{:>10}{:>16}{:>16}{:>8}", "kernel", "ms", "rate", "limit", "share");
        for preset in ["micro", "smol-135m"] {
            bench.model(preset);
        }
        bench.flat();
    });
}

struct Bench {
    exec: Exec,
    threads: usize,
    peak: f64,
}

impl Bench {
    fn new(threads: usize) -> Self {
        let exec = if threads > 1 { Exec::Split } else { Exec::Alone };
        Self { exec, threads, peak: peak(threads) }
    }

    /// A kernel bound by arithmetic: only the operations of its matrix products count.
    fn operations(&self, name: &str, amount: usize, run: impl FnMut()) {
        show(name, amount as f64, self.peak, "Gop/s", run);
    }

    /// A kernel bound by memory: values that must be read or written, beside a copy that moves as many.
    fn values(&self, name: &str, amount: usize, run: impl FnMut()) {
        let bytes = amount * size_of::<f32>();
        show(name, bytes as f64, self.copy(bytes / 2), "GB/s", run);
    }

    /// Bytes per second, read and written, of a plain copy.
    fn copy(&self, bytes: usize) -> f64 {
        let (source, mut target) = (vec![1u8; bytes], vec![0u8; bytes]);
        let share = bytes.div_ceil(self.threads);
        let seconds = fastest(|| {
            target.par_chunks_mut(share).zip(source.par_chunks(share)).for_each(|(to, from)| to.copy_from_slice(from));
            black_box(&mut target);
        });
        2.0 * bytes as f64 / seconds
    }

    fn model(&self, preset: &str) {
        let c = ModelConfig::preset(preset).unwrap();
        let (exec, eps, hidden, ffn, vocabulary) = (self.exec, 1e-5, c.hidden_size, c.intermediate_size, c.vocab_size);
        let name = |kernel: &str| format!("{preset} {kernel}");
        let (x, dy, norm) = (matrix(ROWS, hidden), matrix(ROWS, hidden), matrix(1, hidden).flatten_all().unwrap());
        let ids = common::tokens(0, ROWS, vocabulary);
        let area = ROWS * hidden;

        for (part, outputs, inputs) in [("q", hidden, hidden), ("up", ffn, hidden), ("down", hidden, ffn)] {
            let (x, w, dw, dy) =
                (matrix(ROWS, inputs), matrix(outputs, inputs), matrix(outputs, inputs), matrix(ROWS, outputs));
            let work = 2 * ROWS * inputs * outputs;
            self.operations(&name(&format!("linear {part}")), work, || drop(black_box(linear(exec, &x, &w).unwrap())));
            self.operations(&name(&format!("linear_backward {part}")), 2 * work, || {
                black_box(linear_backward(exec, &x, &w, &dy, None, &dw).unwrap());
            });
        }
        self.attention(preset, &c);
        let (w, dw) = (matrix(vocabulary, hidden), matrix(vocabulary, hidden));
        let work = 2 * ROWS * hidden * vocabulary;
        self.operations(&name("cross_entropy"), work, || drop(black_box(cross_entropy(exec, &x, &w, &ids).unwrap())));
        self.operations(&name("cross_entropy_backward"), 3 * work, || {
            black_box(cross_entropy_backward(exec, &x, &w, &ids, 1e-3, &dw).unwrap());
        });
        self.values(&name("rms_norm"), 2 * area, || drop(black_box(rms_norm(exec, &x, &norm, eps).unwrap())));
        self.values(&name("rms_norm_backward"), 3 * area, || {
            black_box(rms_norm_backward(exec, &x, &norm, eps, &dy, None, &norm.copy().unwrap()).unwrap());
        });
        let table = RopeTable::new(ROWS, c.head_dim, c.rope_theta);
        self.values(&name("rope"), 2 * area, || rope(exec, &x, &table, &[ROWS], false).unwrap());
        self.values(&name("add_assign"), 3 * area, || add_assign(exec, &x, &dy).unwrap());
        let (gate, up, dout) = (matrix(ROWS, ffn), matrix(ROWS, ffn), matrix(ROWS, ffn));
        self.values(&name("swiglu"), 3 * ROWS * ffn, || drop(black_box(swiglu(exec, &gate, &up).unwrap())));
        self.values(&name("swiglu_backward"), 5 * ROWS * ffn, || {
            black_box(swiglu_backward(exec, &gate, &up, &dout).unwrap());
        });
        self.values(&name("embedding"), 2 * area, || drop(black_box(embedding(Exec::Split, &w, &ids).unwrap())));
        self.values(&name("embedding_backward"), 3 * area, || embedding_backward(Exec::Split, &ids, &dy, &dw).unwrap());
    }

    /// Counts the visible half of the scores only.
    fn attention(&self, preset: &str, c: &ModelConfig) {
        let (heads, lengths) = (c.heads(), [ROWS / 2, ROWS / 2]);
        let (wide, narrow) = (heads.queries * heads.dim, heads.keys * heads.dim);
        let (q, k, v, dout) = (matrix(ROWS, wide), matrix(ROWS, narrow), matrix(ROWS, narrow), matrix(ROWS, wide));
        let (out, lse) = attention(self.exec, heads, &lengths, &q, &k, &v).unwrap();
        let product = lengths.iter().map(|length| length * (length + 1)).sum::<usize>() * wide;
        self.operations(&format!("{preset} attention, 2 x {}", ROWS / 2), 2 * product, || {
            black_box(attention(self.exec, heads, &lengths, &q, &k, &v).unwrap());
        });
        self.operations(&format!("{preset} attention_backward"), 5 * product, || {
            black_box(attention_backward(self.exec, heads, &lengths, &q, &k, &v, &out, &lse, &dout).unwrap());
        });
    }

    fn flat(&self) {
        let vector = || common::flat(common::values("flat", FLAT));
        let (p, m, v, g) = (vector(), vector(), vector().sqr().unwrap(), vector());
        let options =
            AdamW { rate: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, gradient_scale: 1.0, step: 9 };
        self.values("adamw_step", 7 * FLAT, || adamw_step(&options, &p, &m, &v, &g).unwrap());
        self.values("sum_of_squares", FLAT, || {
            black_box(sum_of_squares(&g).unwrap());
        });
        let (x, p, mut sums) = (g.to_vec1::<f32>().unwrap(), Projection::new(0, COLUMNS), vec![0.0; COLUMNS]);
        self.operations("sign projection, 200 columns", 2 * COLUMNS * x.len(), || p.project(0, &x, &mut sums));
        let mut back = x.clone();
        self.operations("sign back-projection", 2 * COLUMNS * x.len(), || p.back_project(&sums, 0, &mut back));
        let bytes: Vec<u8> = g.to_vec1::<f32>().unwrap().iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut out = vec![0f32; FLAT];
        let half: Vec<u8> = bytes.chunks_exact(4).flat_map(|b| [b[2], b[3]]).collect();
        let members: [Vec<u8>; 16] = std::array::from_fn(|_| bytes.clone());
        let halves: [Vec<u8>; 16] = std::array::from_fn(|_| half.clone());
        for k in [2, 4, 8, 16] {
            let weight = 1.0 / k as f64;
            let f32s: Vec<_> = members[..k].iter().map(|bytes| (weight, Floats::F32(bytes))).collect();
            self.values(&format!("weighted_sum of {k} f32"), (k + 1) * FLAT, || weighted_sum(&mut out, &f32s));
            let bf16s: Vec<_> = halves[..k].iter().map(|bytes| (weight, Floats::BF16(bytes))).collect();
            self.values(&format!("weighted_sum of {k} bf16"), (k + 2) * FLAT / 2, || weighted_sum(&mut out, &bf16s));
            let f16s: Vec<_> = halves[..k].iter().map(|bytes| (weight, Floats::F16(bytes))).collect();
            self.values(&format!("weighted_sum of {k} f16"), (k + 2) * FLAT / 2, || weighted_sum(&mut out, &f16s));
        }
        self.running_sum(&members[0], &mut out);
    }

    /// What a walk over subsets would do instead of a merge, were it worth it: one member joins a sum kept in f64, and the
    /// model is the sum divided by the number of members.
    fn running_sum(&self, member: &[u8], out: &mut [f32]) {
        const TILE: usize = 1 << 14;
        let mut sums = vec![0f64; FLAT];
        let (values, _) = member.as_chunks::<4>();
        self.values("running sum, one f32 joins", 6 * FLAT, || {
            let tiles = sums.par_chunks_mut(TILE).zip(out.par_chunks_mut(TILE)).zip(values.par_chunks(TILE));
            tiles.for_each(|((sums, out), values)| {
                pulp::Arch::new().dispatch(
                    #[inline(always)]
                    || {
                        for ((sum, out), value) in sums.iter_mut().zip(out).zip(values) {
                            *sum += f64::from(f32::from_le_bytes(*value));
                            *out = (*sum * 0.125) as f32;
                        }
                    },
                );
            });
        });
    }
}

fn matrix(rows: usize, columns: usize) -> Tensor {
    common::flat(common::values("matrix", rows * columns)).reshape((rows, columns)).unwrap()
}

fn show(name: &str, amount: f64, limit: f64, unit: &str, run: impl FnMut()) {
    let seconds = fastest(run);
    let (rate, limit) = (amount / seconds / 1e9, limit / 1e9);
    let (ms, share) = (seconds * 1e3, 100.0 * rate / limit);
    println!("{name:<34}{ms:>10.3}{rate:>10.1} {unit:<5}{limit:>10.1} {unit:<5}{share:>7.0}%");
}

/// The shortest of the runs that fit in a quarter of a second, at least five: what other programs disturb least.
fn fastest(mut run: impl FnMut()) -> f64 {
    run();
    let (begin, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < 5 || begin.elapsed().as_secs_f64() < 0.25 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

/// Operations per second of multiply-adds that never leave the registers.
fn peak(threads: usize) -> f64 {
    const STEPS: usize = 1 << 20;
    const CHAINS: usize = 16; // enough to hide the latency, few enough for AVX2's registers to hold most
    struct Chains;
    impl WithSimd for Chains {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> usize {
            let (factor, term) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
            let mut sums = [simd.splat_f32s(black_box(1.0)); CHAINS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = simd.mul_add_f32s(*sum, factor, term);
                }
            }
            let total = sums.into_iter().fold(term, |a, b| simd.add_f32s(a, b));
            black_box(simd.reduce_sum_f32s(total));
            S::F32_LANES
        }
    }
    let lanes = pulp::Arch::new().dispatch(Chains);
    let seconds = fastest(|| {
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            black_box(pulp::Arch::new().dispatch(Chains));
        });
    });
    (2 * STEPS * CHAINS * lanes * threads) as f64 / seconds
}
