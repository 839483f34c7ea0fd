//! CUDA kernels against their CPU twins: emulated on the processor from the same source with feature `cuda-emulation`, on the
//! first GPU with feature `cuda`.
//!
//! Tolerances are relative to the largest value of the twin's result. In f32 both sides add at most a few thousand products in
//! different orders, each off by 6e-8. In bf16 the twin computes in f32 from the same rounded inputs, so what is compared is
//! the rounding of results (2⁻⁹ of each) and of intermediate values that the kernel keeps in bf16.
#![cfg(any(feature = "cuda", feature = "cuda-emulation"))] // `mixpool self-test` runs the same

pub(crate) mod common;

use candle_core::{DType, Device, Device::Cpu, Tensor};
use common::{assert_within, bits, compute, distance, flat, largest, norm, spread};
use mixpool::kernels::{
    self, Exec, Floats, Gelu, Heads, Precision, Projection, RopeTable, Source, StreamedSums, Turns,
    weighted_sums_on_device,
};

const DEVICE: Exec = Exec::Device { tf32: false };
const F32: f64 = 2e-6;
const BF16: f64 = 1.0 / 256.0;

/// Values in [−1, 1) that depend on the name, exact in `dtype`.
fn random(name: &str, rows: usize, columns: usize, dtype: DType) -> Tensor {
    flat(spread(name, rows * columns, 2.0)).reshape((rows, columns)).unwrap().to_dtype(dtype).unwrap()
}

fn device() -> Device {
    compute(Precision::F32).device().clone()
}

fn placed(tensor: &Tensor) -> Tensor {
    tensor.to_device(&device()).unwrap().copy().unwrap() // where it is already, to_device shares it
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F32).unwrap()
}

fn vector(tensor: &Tensor) -> Vec<f32> {
    wide(&tensor.to_device(&Cpu).unwrap()).flatten_all().unwrap().to_vec1().unwrap()
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

#[cfg_attr(test, test)]
pub(crate) fn rms_norm_is_its_twin() {
    each_type(|dtype, tolerance| {
        for (n, width) in [(1, 3), (3, 5), (70, 37), (130, 64), (5, 576), (3, 3080)] {
            let (x, dy) = (random("x", n, width, dtype), random("dy", n, width, dtype));
            let gain = random("gain", 1, width, dtype).flatten_all().unwrap();
            let what = format!("rms norm of [{n}, {width}] in {dtype:?}");
            compare(&[&x, &gain, &dy], tolerance, &what, |exec, t| {
                let y = kernels::rms_norm(exec, &t[0], &t[1], 1e-5)?;
                let dgain = zeros(&t[1]);
                let dx = kernels::rms_norm_backward(exec, &t[0], &t[1], 1e-5, &t[2], None, &dgain)?;
                let onto = t[2].copy()?;
                let onto = kernels::rms_norm_backward(exec, &t[0], &t[1], 1e-5, &t[2], Some(onto), &dgain)?;
                Ok(vec![y, dx, onto, dgain])
            });
        }
    });
}

/// Sequences of one batch: none a multiple of a tile, one longer than two tiles of 64.
const LENGTHS: [usize; 6] = [1, 3, 17, 64, 65, 150];

fn zeros(like: &Tensor) -> Tensor {
    Tensor::zeros(like.shape(), DType::F32, like.device()).unwrap()
}

fn ids(count: usize, below: usize) -> Vec<u32> {
    common::tokens(0, count, below)
}

/// Runs an operator by kernels in `dtype`, and by the processor on the same values in f32, and compares what they return.
#[track_caller]
fn compare(
    inputs: &[&Tensor],
    tolerance: f64,
    what: &str,
    run: impl Fn(Exec, &[Tensor]) -> mixpool::Result<Vec<Tensor>>,
) {
    compare_each(inputs, |_| tolerance, what, run);
}

/// As [`compare`], with a tolerance for each result.
#[track_caller]
fn compare_each(
    inputs: &[&Tensor],
    tolerance: impl Fn(usize) -> f64,
    what: &str,
    run: impl Fn(Exec, &[Tensor]) -> mixpool::Result<Vec<Tensor>>,
) {
    let own = || inputs.iter().map(|input| placed(input)).collect::<Vec<_>>();
    let widened: Vec<Tensor> = inputs.iter().map(|input| wide(input).copy().unwrap()).collect();
    let results = run(DEVICE, &own()).unwrap();
    for (index, (got, twin)) in results.iter().zip(run(Exec::Split, &widened).unwrap()).enumerate() {
        assert_close(got, &twin, tolerance(index), &format!("{what}, result {index}"));
    }
    for (first, second) in results.iter().zip(run(DEVICE, &own()).unwrap()) {
        assert_eq!(bits(&vector(first)), bits(&vector(&second)), "{what}: other bits the second time");
    }
}

#[cfg_attr(test, test)]
pub(crate) fn layer_norm_is_its_twin() {
    each_type(|dtype, tolerance| {
        for (n, width) in [(3, 5), (70, 37), (130, 64)] {
            let (x, dy) = (random("x", n, width, dtype), random("dy", n, width, dtype));
            let [gain, bias] = ["gain", "bias"].map(|name| random(name, 1, width, dtype).flatten_all().unwrap());
            compare(
                &[&x, &gain, &bias, &dy],
                tolerance,
                &format!("layer norm of [{n}, {width}] in {dtype:?}"),
                |exec, t| {
                    let y = kernels::layer_norm(exec, &t[0], &t[1], &t[2], 1e-5)?;
                    let dgain = zeros(&t[1]);
                    let dx = kernels::layer_norm_backward(exec, &t[0], &t[1], 1e-5, &t[3], None, &dgain)?;
                    Ok(vec![y, dx, dgain])
                },
            );
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn norms_of_sums_are_their_twins() {
    each_type(|dtype, tolerance| {
        for (n, width) in [(3, 5), (70, 64)] {
            let (x, added) = (random("x", n, width, dtype), random("added", n, width, dtype));
            let [gain, bias] = ["gain", "bias"].map(|name| random(name, 1, width, dtype).flatten_all().unwrap());
            let tolerance = 2.0 * tolerance; // the sum is rounded, and its norm
            compare(&[&x, &added, &gain, &bias], tolerance, &format!("norm of a sum in {dtype:?}"), |exec, t| {
                let other = t[0].copy()?;
                let rms = kernels::rms_norm_of_sum(exec, &t[0], &t[1], &t[2], 1e-5)?;
                let layer = kernels::layer_norm_of_sum(exec, &other, &t[1], &t[2], &t[3], 1e-5)?;
                Ok(vec![rms, t[0].clone(), layer, other])
            });
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn biases_and_sums_are_their_twins() {
    each_type(|dtype, tolerance| {
        for (n, width) in [(1, 1), (70, 37), (4200, 64)] {
            let (y, x) = (random("y", n, width, dtype), random("x", n, width, dtype));
            let bias = random("bias", 1, width, dtype).flatten_all().unwrap();
            let tolerance = 2.0 * tolerance; // a sum of three, rounded twice
            compare(&[&y, &x, &bias], tolerance, &format!("bias of [{n}, {width}] in {dtype:?}"), |exec, t| {
                let dbias = zeros(&t[2]);
                kernels::bias_backward(exec, &t[1], &dbias)?;
                kernels::add_bias(exec, &t[0], &t[2])?;
                kernels::add_assign(exec, &t[0], &t[1])?;
                Ok(vec![t[0].clone(), dbias])
            });
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn linear_layers_are_their_twins() {
    each_type(|dtype, tolerance| {
        for (n, inputs, outputs) in [(1, 1, 1), (3, 5, 7), (130, 37, 21)] {
            let (x, dy) = (random("x", n, inputs, dtype), random("dy", n, outputs, dtype));
            let what = format!("linear layer [{outputs}, {inputs}] of {n} rows in {dtype:?}");
            let dx = random("dx", n, inputs, dtype);
            compare(&[&x, &random("w", outputs, inputs, dtype), &dy, &dx], tolerance, &what, |exec, t| {
                let dw = zeros(&t[1]);
                let dx = kernels::linear_backward(exec, &t[0], &t[1], &t[2], Some(t[3].clone()), &dw)?;
                Ok(vec![kernels::linear(exec, &t[0], &t[1])?, dx, dw])
            });
            compare(&[&x, &random("w", inputs, outputs, dtype), &dy], tolerance, &what, |exec, t| {
                let dw = zeros(&t[1]);
                let dx = kernels::conv1d_backward(exec, &t[0], &t[1], &t[2], None, &dw)?;
                Ok(vec![kernels::conv1d(exec, &t[0], &t[1])?, dx, dw])
            });
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn activations_are_their_twins() {
    each_type(|dtype, tolerance| {
        for (n, width) in [(1, 1), (70, 37), (64, 128)] {
            let [gate, up, dout] = ["gate", "up", "dout"].map(|name| (random(name, n, width, dtype) * 4.0).unwrap());
            compare(
                &[&gate, &up, &dout],
                tolerance,
                &format!("activations of [{n}, {width}] in {dtype:?}"),
                |exec, t| {
                    let (dgate, dup) = kernels::swiglu_backward(exec, &t[0], &t[1], &t[2])?;
                    let mut results = vec![kernels::swiglu(exec, &t[0], &t[1])?, dgate, dup];
                    // Gate and up as columns of one tensor, and so their gradients.
                    let (of_columns, gradient) = if exec == DEVICE {
                        let factors = kernels::columns(&Tensor::cat(&t[..2], 1)?, &[width; 2])?;
                        let (whole, parts) = kernels::columns_on_device(&t[0], n, &[width; 2])?;
                        kernels::swiglu_backward_on_device(&factors[0], &factors[1], &t[2], &parts[0], &parts[1])?;
                        (kernels::swiglu(exec, &factors[0], &factors[1])?, whole)
                    } else {
                        (results[0].clone(), Tensor::cat(&results[1..], 1)?)
                    };
                    results.extend([of_columns, gradient]);
                    for form in [Gelu::Exact, Gelu::Tanh] {
                        results.push(kernels::gelu(exec, form, &t[0])?);
                        results.push(kernels::gelu_backward(exec, form, &t[0], &t[2])?);
                    }
                    Ok(results)
                },
            );
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn projections_have_the_signs_of_their_twins() {
    let x = random("x", 1, 70_000, DType::F32).flatten_all().unwrap();
    let values = vector(&x);
    for (columns, ranges) in
        [(1, vec![0..1, 70..72]), (3, vec![5..64, 64..65, 127..300]), (130, vec![30..33_000, 40_000..70_000])]
    {
        let projection = Projection::new(9, columns);
        let expected = projection.project_ranges(&ranges, &values);
        let on_device = projection.placed(&ranges, &device()).unwrap();
        let got = on_device.project(&placed(&x)).unwrap();
        let covered: Vec<f32> = ranges.iter().flat_map(|range| values[range.clone()].to_vec()).collect();
        // The twin adds up to 1024 values in f32; one wrong sign is off by 1e-3 and more.
        let size = norm(&covered) / (columns as f64).sqrt();
        let errors = got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs() / size);
        assert_within(1e-5, errors, &format!("projection of {ranges:?} to {columns}"));
        assert_eq!(on_device.project(&placed(&x)).unwrap(), got, "other bits the second time");
    }
}

#[cfg_attr(test, test)]
pub(crate) fn rope_is_its_twin() {
    let n = LENGTHS.iter().sum();
    each_type(|dtype, tolerance| {
        for (turning, dim) in [(6, 6), (16, 64)] {
            let frequencies = kernels::rope_frequencies(turning, 10_000.0);
            let table = RopeTable::of_part(150, &frequencies, dim);
            let (q, k) = (random("q", n, 3 * dim, dtype), random("k", n, dim, dtype));
            compare(&[&q, &k], tolerance, &format!("rope of {turning} of {dim} in {dtype:?}"), |exec, t| {
                let back = t[0].copy()?;
                kernels::rope(exec, &back, &table, &LENGTHS, true)?;
                // Queries between columns that keep their place.
                let (before, after, own) = (t[1].copy()?, t[1].copy()?, t[0].copy()?);
                let wide = Tensor::cat(&[&before, &own, &after], 1)?;
                kernels::rope_both(exec, &t[0], &t[1], &table, &LENGTHS, false)?;
                if exec == DEVICE {
                    let parts = kernels::columns(&wide, &[dim, 3 * dim, dim])?;
                    kernels::rope(exec, &parts[1], &table, &LENGTHS, false)?;
                    return Ok(vec![t[0].clone(), t[1].clone(), back, wide]);
                }
                Ok(vec![t[0].clone(), t[1].clone(), back, Tensor::cat(&[&before, &t[0], &after], 1)?])
            });
        }
    });
}

#[cfg_attr(test, test)]
pub(crate) fn rows_are_their_twins() {
    each_type(|dtype, tolerance| {
        for (n, width, vocabulary) in [(1, 1, 1), (200, 37, 31), (65, 256, 500)] {
            let ids = ids(n, vocabulary);
            let rows: Vec<usize> = (0..n).rev().step_by(3).collect();
            let (table, dy) = (random("table", vocabulary, width, dtype), random("dy", n, width, dtype));
            compare(&[&table, &dy], tolerance, &format!("rows of [{vocabulary}, {width}] in {dtype:?}"), |exec, t| {
                let dtable = zeros(&t[0]);
                kernels::embedding_backward(exec, &ids, &t[1], &dtable)?;
                let some = kernels::select_rows(exec, &t[1], &rows)?;
                let back = kernels::select_rows_backward(exec, &rows, &some, n)?;
                Ok(vec![kernels::embedding(exec, &t[0], &ids)?, dtable, some, back])
            });
        }
        for count in [1, 3] {
            let turns = Turns { count, widths: [6, 2, 2] };
            let fused = random("fused", 70, 10 * count, dtype);
            compare(&[&fused], tolerance, &format!("{count} turns in {dtype:?}"), |exec, t| {
                let [q, k, v] = kernels::split_fused(exec, turns, &t[0])?;
                let joined = kernels::join_fused(exec, turns, [&q, &k, &v])?;
                Ok(vec![q, k, v, joined])
            });
        }
    });
}

/// In bf16, probabilities and their gradients are rounded before they are multiplied, and so are results.
#[cfg_attr(test, test)]
pub(crate) fn attention_is_its_twin() {
    let n = LENGTHS.iter().sum();
    // The widest takes more shared memory than a block has without asking for it.
    let plain = [(3, 1, 6), (4, 4, 16), (2, 1, 64), (1, 1, 130), (1, 1, 256)];
    let tiles = [(3, 1, 64), (2, 2, 64), (2, 1, 128)];
    let cases = plain.map(|heads| (heads, DType::F32, 4e-6)).into_iter();
    let cases = cases.chain(plain.into_iter().chain(tiles).map(|heads| (heads, DType::BF16, 2.0 * BF16)));
    for ((queries, keys, dim), dtype, tolerance) in cases {
        let heads = Heads { queries, keys, dim };
        let [q, dout] = ["q", "dout"].map(|name| (random(name, n, queries * dim, dtype) * 2.0).unwrap());
        let [k, v] = ["k", "v"].map(|name| random(name, n, keys * dim, dtype));
        compare(&[&q, &k, &v, &dout], tolerance, &format!("attention of {heads:?} in {dtype:?}"), |exec, t| {
            let (out, lse) = kernels::attention(exec, heads, &LENGTHS, &t[0], &t[1], &t[2])?;
            let (dq, dk, dv) =
                kernels::attention_backward(exec, heads, &LENGTHS, &t[0], &t[1], &t[2], &out, &lse, &t[3])?;
            let mut results = vec![out, lse, dq, dk, dv];
            // Queries and values as columns of one tensor, and so their gradients; keys alone.
            let (wide, narrow) = (queries * dim, keys * dim);
            let (of_columns, gradient) = if exec == DEVICE {
                let parts = kernels::columns(&Tensor::cat(&[&t[0], &t[2]], 1)?, &[wide, narrow])?;
                let (whole, gradients) = kernels::columns_on_device(&t[0], n, &[wide, narrow])?;
                let (dk, _) = kernels::columns_on_device(&t[0], n, &[narrow])?;
                let operands = [&parts[0], &t[1], &parts[1]];
                let (out, lse) = kernels::attention(exec, heads, &LENGTHS, operands[0], operands[1], operands[2])?;
                let into = [&gradients[0], &dk, &gradients[1]];
                kernels::attention_backward_on_device(heads, &LENGTHS, operands, &out, &lse, &t[3], into)?;
                assert_eq!(bits(&vector(&dk)), bits(&vector(&results[3])), "keys are read as before");
                (out, whole)
            } else {
                (results[0].clone(), Tensor::cat(&[&results[2], &results[4]], 1)?)
            };
            results.extend([of_columns, gradient]);
            Ok(results)
        });
    }
}

#[cfg_attr(test, test)]
pub(crate) fn a_head_too_wide_is_refused() {
    let heads = Heads { queries: 1, keys: 1, dim: 260 };
    let q = placed(&random("q", 4, 260, DType::F32));
    let refused = kernels::attention(DEVICE, heads, &[4], &q, &q, &q).unwrap_err().to_string();
    assert!(refused.contains("260"), "{refused}");
}

/// Of a gradient that sums over a vocabulary, or is divided by such a sum: as many roundings as it has entries, each of half a
/// unit at most. A sixteenth of that is what f32 sums from the first entry to the last leave (1e-3 of 524,289, measured); how
/// cuBLAS divides them it does not say.
fn gathered(vocabulary: usize, tolerance: f64) -> f64 {
    tolerance.max(vocabulary as f64 * f64::from(f32::EPSILON) / 2.0 / 16.0)
}

#[cfg_attr(test, test)]
pub(crate) fn cross_entropy_is_its_twin() {
    // The largest needs two chunks of logits.
    for (n, width, vocabulary) in [(1, 3, 1), (70, 8, 501), (40, 16, 1024), (130, 4, 524_289)] {
        // In bf16 the gradients of the logits are rounded, then their products.
        for (dtype, tolerance) in [(DType::F32, F32), (DType::BF16, 2.0 * BF16)] {
            let (x, w) = (random("x", n, width, dtype), random("w", vocabulary, width, dtype));
            let targets = ids(n, vocabulary);
            let what = format!("cross-entropy of [{n}, {vocabulary}] in {dtype:?}");
            let tolerance = |result| if result == 2 { gathered(vocabulary, tolerance) } else { tolerance };
            compare_each(&[&x, &w], tolerance, &what, |exec, t| {
                let losses = |nll: Vec<f64>| flat(nll.into_iter().map(|nll| nll as f32).collect());
                let dw = zeros(&t[1]);
                let (nll, dx) = kernels::cross_entropy_backward(exec, &t[0], &t[1], &targets, 0.5, &dw)?;
                let scored = kernels::cross_entropy(exec, &t[0], &t[1], &targets)?;
                if vocabulary == 1 {
                    return Ok(Vec::new()); // every loss and gradient is 0
                }
                Ok(vec![losses(nll), losses(scored), dx, dw])
            });
        }
    }
}

#[cfg_attr(test, test)]
pub(crate) fn log_odds_are_their_twins() {
    // Targets of all kinds: nearly certain, likely, and so unlikely that their probability is raised.
    for (n, width, vocabulary) in [(1, 3, 2), (70, 8, 501), (40, 16, 1024), (130, 4, 524_289)] {
        for (dtype, tolerance) in [(DType::F32, 2.0 * F32), (DType::BF16, 2.0 * BF16)] {
            let (x, w) = (random("x", n, width, dtype), random("w", vocabulary, width, dtype));
            let x = (x * 4.0).unwrap();
            let targets = ids(n, vocabulary);
            let what = format!("log-odds of [{n}, {vocabulary}] in {dtype:?}");
            let tolerance = |result| if result > 0 { gathered(vocabulary, tolerance) } else { tolerance };
            compare_each(&[&x, &w], tolerance, &what, |exec, t| {
                let dw = zeros(&t[1]);
                let (outputs, dx) = kernels::log_odds_backward(exec, &t[0], &t[1], &targets, 0.5, &dw)?;
                Ok(vec![flat(outputs.into_iter().map(|output| output as f32).collect()), dx, dw])
            });
        }
    }
}

#[cfg_attr(test, test)]
pub(crate) fn inner_products_are_their_twins() {
    for n in [1, 5, 1000, 8193, 100_004] {
        let [a, b] = ["a", "b"].map(|name| random(name, 1, n, DType::F32).flatten_all().unwrap());
        let expected = kernels::dot(Exec::Split, &a, &b).unwrap();
        let (a, b) = (placed(&a), placed(&b));
        let got = kernels::dot(DEVICE, &a, &b).unwrap();
        let sizes = kernels::dot(DEVICE, &a, &a).unwrap();
        assert_within(1e-13, [(got - expected).abs() / sizes], &format!("inner product of {n}"));
        assert_eq!(got.to_bits(), kernels::dot(DEVICE, &a, &b).unwrap().to_bits(), "other bits the second time");
    }
}

#[cfg_attr(test, test)]
pub(crate) fn weighted_sums_have_the_bits_of_the_merge() {
    for n in [1, 5, 1000, 1025] {
        let types = [DType::F32, DType::BF16, DType::F16, DType::BF16, DType::F32];
        let member = |(i, dtype): (usize, DType)| random(&format!("member {i}"), 1, n, dtype).flatten_all().unwrap();
        let members: Vec<Tensor> = types.into_iter().enumerate().map(member).collect();
        let bytes: Vec<Vec<u8>> = members.iter().map(bytes_of).collect();
        let members: Vec<Tensor> = members.iter().map(placed).collect();
        for candidates in 1..=7 {
            let weights: Vec<Vec<f64>> = (0..candidates)
                .map(|c| (0..5).map(|i| if (c + i) % 4 == 3 { 0.0 } else { 0.3 / f64::from(1 + c + i) }).collect())
                .collect();
            for dtype in [DType::F32, DType::BF16] {
                let outs: Vec<Tensor> = weights.iter().map(|_| Tensor::zeros(n, dtype, &device()).unwrap()).collect();
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

/// Members that pass through small buffers, of types that change on the way, beside one that lies on the device.
#[cfg_attr(test, test)]
pub(crate) fn streamed_sums_have_the_same_bits() {
    let lengths = [1000, 3, 5000, 777];
    let n: usize = lengths.iter().sum();
    let types =
        [[DType::F32; 4], [DType::BF16; 4], [DType::F32, DType::BF16, DType::BF16, DType::F16], [DType::BF16; 4]];
    let part = |member: usize, index: usize| {
        random(&format!("member {member} {index}"), 1, lengths[index], types[member][index]).flatten_all().unwrap()
    };
    let members: Vec<Vec<Tensor>> = (0..4).map(|member| (0..4).map(|index| part(member, index)).collect()).collect();
    let bytes: Vec<Vec<Vec<u8>>> = members.iter().map(|parts| parts.iter().map(bytes_of).collect()).collect();
    let floats = |member: usize, index: usize| match types[member][index] {
        DType::F32 => Floats::F32(&bytes[member][index]),
        DType::BF16 => Floats::BF16(&bytes[member][index]),
        _ => Floats::F16(&bytes[member][index]),
    };
    let on_device = placed(&Tensor::cat(&members[3], 0).unwrap());
    let weights = [[0.5, 0.25, 0.125, 0.125], [0.0, 0.7, 0.3, 0.0], [-1.0, 2.0, 0.0, 0.1]];
    for (count, dtype, buffer) in [(3, DType::F32, 4096), (1, DType::F32, 1 << 20), (2, DType::BF16, 1000)] {
        let weights: Vec<Vec<f64>> = weights[..count].iter().map(|weights| weights.to_vec()).collect();
        let outs: Vec<Tensor> = weights.iter().map(|_| Tensor::zeros(n, dtype, &device()).unwrap()).collect();
        let mut sums = StreamedSums::new(&device(), buffer);
        for _ in 0..2 {
            let host = |member| Source::Host((0..4).map(|index| floats(member, index)).collect());
            let sources = [host(0), host(1), host(2), Source::Device(&on_device)];
            sums.sum(&outs, &weights, &sources).unwrap();
        }
        for (out, weights) in outs.iter().zip(&weights) {
            let mut expected = Vec::new();
            for (index, length) in lengths.iter().enumerate() {
                let members: Vec<_> = (0..4).map(|member| (weights[member], floats(member, index))).collect();
                let mut values = vec![0f32; *length];
                kernels::weighted_sum(&mut values, &members);
                expected.extend(values);
            }
            let expected = vector(&flat(expected).to_dtype(dtype).unwrap());
            assert_eq!(bits(&vector(out)), bits(&expected), "{count} candidates, {dtype:?}, buffers of {buffer}");
        }
    }
    let mut small = StreamedSums::new(&device(), 64);
    let out = Tensor::zeros(lengths[0], DType::F32, &device()).unwrap();
    let refused = small.sum(&[out], &[vec![1.0]], &[Source::Host(vec![floats(0, 0)])]).unwrap_err().to_string();
    assert!(refused.contains("64 bytes"), "{refused}");
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    match tensor.dtype() {
        DType::F32 => tensor.to_vec1::<f32>().unwrap().into_iter().flat_map(f32::to_le_bytes).collect(),
        DType::BF16 => tensor.to_vec1::<half::bf16>().unwrap().into_iter().flat_map(half::bf16::to_le_bytes).collect(),
        _ => tensor.to_vec1::<half::f16>().unwrap().into_iter().flat_map(half::f16::to_le_bytes).collect(),
    }
}

/// All of them, for `mixpool self-test`.
#[allow(dead_code)]
pub(crate) const CASES: &[(&str, fn())] = &[
    ("rms_norm_is_its_twin", rms_norm_is_its_twin),
    ("layer_norm_is_its_twin", layer_norm_is_its_twin),
    ("norms_of_sums_are_their_twins", norms_of_sums_are_their_twins),
    ("biases_and_sums_are_their_twins", biases_and_sums_are_their_twins),
    ("linear_layers_are_their_twins", linear_layers_are_their_twins),
    ("activations_are_their_twins", activations_are_their_twins),
    ("projections_have_the_signs_of_their_twins", projections_have_the_signs_of_their_twins),
    ("rope_is_its_twin", rope_is_its_twin),
    ("rows_are_their_twins", rows_are_their_twins),
    ("attention_is_its_twin", attention_is_its_twin),
    ("a_head_too_wide_is_refused", a_head_too_wide_is_refused),
    ("cross_entropy_is_its_twin", cross_entropy_is_its_twin),
    ("log_odds_are_their_twins", log_odds_are_their_twins),
    ("inner_products_are_their_twins", inner_products_are_their_twins),
    ("weighted_sums_have_the_bits_of_the_merge", weighted_sums_have_the_bits_of_the_merge),
    ("streamed_sums_have_the_same_bits", streamed_sums_have_the_same_bits),
];
