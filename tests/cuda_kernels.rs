//! CUDA kernels, emulated on the processor from the same source, against their CPU twins.
//!
//! Tolerances are relative to the largest value of the twin's result. In f32 both sides add at most a few thousand products in
//! different orders, each off by 6e-8. In bf16 the twin computes in f32 from the same rounded inputs, so what is compared is
//! the rounding of results (2⁻⁹ of each) and of intermediate values that the kernel keeps in bf16.
#![cfg(feature = "cuda-emulation")]

mod common;

use candle_core::{DType, Device::Cpu, Tensor};
use common::{assert_within, distance, flat, largest, spread};
use mixpool::kernels::{self, Exec, Floats, weighted_sums_on_device};

const DEVICE: Exec = Exec::Device { tf32: false };
const F32: f64 = 2e-6;
const BF16: f64 = 1.0 / 256.0;

/// Values in [−1, 1) that depend on the name, exact in `dtype`.
fn random(name: &str, rows: usize, columns: usize, dtype: DType) -> Tensor {
    flat(spread(name, rows * columns, 2.0)).reshape((rows, columns)).unwrap().to_dtype(dtype).unwrap()
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F32).unwrap()
}

fn vector(tensor: &Tensor) -> Vec<f32> {
    wide(tensor).flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares the kernel's result with its twin's.
#[track_caller]
fn assert_close(got: &Tensor, twin: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(got.dims(), twin.dims(), "{what}");
    let twin: Vec<f64> = vector(twin).into_iter().map(f64::from).collect();
    assert_within(tolerance, [distance(&vector(got), &twin) / largest(&twin)], what);
}

fn each_type(check: impl Fn(DType, f64)) {
    check(DType::F32, F32);
    check(DType::BF16, BF16);
}

#[test]
fn rms_norm_is_its_twin() {
    each_type(|dtype, tolerance| {
        for (n, width) in [(1, 3), (3, 5), (70, 37), (130, 64), (5, 576)] {
            let (x, dy) = (random("x", n, width, dtype), random("dy", n, width, dtype));
            let gain = random("gain", 1, width, dtype).flatten_all().unwrap();
            let what = format!("rms norm of [{n}, {width}] in {dtype:?}");
            let y = kernels::rms_norm(DEVICE, &x, &gain, 1e-5).unwrap();
            let [x32, gain32, dy32] = [&x, &gain, &dy].map(wide);
            assert_close(&y, &kernels::rms_norm(Exec::Split, &x32, &gain32, 1e-5).unwrap(), tolerance, &what);
            for onto in [None, Some(&dy)] {
                let copy = |dtype| onto.map(|onto| onto.to_dtype(dtype).unwrap().copy().unwrap());
                let [dgain, twin_dgain] =
                    [(); 2].map(|()| random("before", 1, width, DType::F32).flatten_all().unwrap());
                let dx = kernels::rms_norm_backward(DEVICE, &x, &gain, 1e-5, &dy, copy(dtype), &dgain).unwrap();
                let onto = copy(DType::F32);
                let twin =
                    kernels::rms_norm_backward(Exec::Split, &x32, &gain32, 1e-5, &dy32, onto, &twin_dgain).unwrap();
                assert_close(&dx, &twin, tolerance, &format!("{what}: dx"));
                assert_close(&dgain, &twin_dgain, F32, &format!("{what}: dgain")); // of inputs as they are, in f32
            }
        }
    });
}

#[test]
fn weighted_sums_have_the_bits_of_the_merge() {
    for n in [1, 5, 1000, 1025] {
        let types = [DType::F32, DType::BF16, DType::F16, DType::BF16, DType::F32];
        let member = |(i, dtype): (usize, DType)| random(&format!("member {i}"), 1, n, dtype).flatten_all().unwrap();
        let members: Vec<Tensor> = types.into_iter().enumerate().map(member).collect();
        let bytes: Vec<Vec<u8>> = members.iter().map(bytes_of).collect();
        for candidates in 1..=7 {
            let weights: Vec<Vec<f64>> = (0..candidates)
                .map(|c| (0..5).map(|i| if (c + i) % 4 == 3 { 0.0 } else { 0.3 / (1 + c + i) as f64 }).collect())
                .collect();
            for dtype in [DType::F32, DType::BF16] {
                let outs: Vec<Tensor> = weights.iter().map(|_| Tensor::zeros(n, dtype, &Cpu).unwrap()).collect();
                weighted_sums_on_device(&outs, &weights, &members).unwrap();
                for (out, weights) in outs.iter().zip(&weights) {
                    let floats = bytes.iter().zip(types).map(|(bytes, dtype)| match dtype {
                        DType::F32 => Floats::F32(bytes),
                        DType::BF16 => Floats::BF16(bytes),
                        _ => Floats::F16(bytes),
                    });
                    let members: Vec<_> = weights.iter().copied().zip(floats).collect();
                    let mut expected = vec![0f32; n];
                    kernels::weighted_sum(&mut expected, &members);
                    let expected = vector(&flat(expected).to_dtype(dtype).unwrap());
                    assert_eq!(vector(out), expected, "{n} values, {candidates} candidates, {dtype:?}");
                }
            }
        }
    }
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    match tensor.dtype() {
        DType::F32 => tensor.to_vec1::<f32>().unwrap().into_iter().flat_map(f32::to_le_bytes).collect(),
        DType::BF16 => tensor.to_vec1::<half::bf16>().unwrap().into_iter().flat_map(half::bf16::to_le_bytes).collect(),
        _ => tensor.to_vec1::<half::f16>().unwrap().into_iter().flat_map(half::f16::to_le_bytes).collect(),
    }
}
