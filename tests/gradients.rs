//! Gradients: every operator and the whole model, forward and backward, against plain twins in f64 with candle's
//! automatic differentiation and against finite differences; and the same bits however the work is divided.

mod common;
mod twin;

use candle_core::{DType, Device::Cpu, Tensor};
use common::{assert_within, bits, distance, flat, largest, relative, spread};
use mixpool::kernels::{self, AdamW, Exec, Floats, Gelu, Heads, RopeTable, Turns};
use mixpool::model::{Layout, ModelConfig, Sequences, Transformer};

/// Sequences of one pack: none a multiple of a block, one longer than two blocks of queries.
const LENGTHS: [usize; 5] = [1, 3, 17, 65, 130];
const N: usize = 216;
const HEADS: Heads = Heads { queries: 3, keys: 1, dim: 6 };
/// f32 against f64, relative to the largest value: sums over at most a few hundred products, each off by 6e-8.
const TOLERANCE: f64 = 1e-5;

/// Values in [−1, 1) that depend on the name.
fn random(name: &str, rows: usize, columns: usize) -> Tensor {
    flat(spread(name, rows * columns, 2.0)).reshape((rows, columns)).unwrap()
}

fn ids(count: usize, vocabulary: usize) -> Vec<u32> {
    common::tokens(0, count, vocabulary)
}

fn zeros(like: &Tensor) -> Tensor {
    like.zeros_like().unwrap()
}

fn vector(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares a result with its twin, relative to the twin's largest value.
#[track_caller]
fn assert_close(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let expected: Vec<f64> = expected.flatten_all().unwrap().to_vec1().unwrap();
    assert_within(TOLERANCE, [distance(&vector(got), &expected) / largest(&expected)], what);
}

#[test]
fn linear_agrees_with_its_twin() {
    for (n, inputs, outputs) in [(1, 1, 1), (3, 5, 7), (N, 37, 21)] {
        let (x, w, dy) = (random("x", n, inputs), random("w", outputs, inputs), random("dy", n, outputs));
        let (y, expected) = twin::differentiate(&[&x, &w], &dy, |v| twin::linear(&v[0], &v[1])).unwrap();
        assert_close(&kernels::linear(Exec::Split, &x, &w).unwrap(), &y, "linear");
        let dw = zeros(&w);
        let dx = kernels::linear_backward(Exec::Split, &x, &w, &dy, None, &dw).unwrap();
        assert_close(&dx, &expected[0], "linear: dx");
        assert_close(&dw, &expected[1], "linear: dw");
        // Both gradients are added to what is there.
        let dx = kernels::linear_backward(Exec::Split, &x, &w, &dy, Some(dx), &dw).unwrap();
        assert_close(&dx, &(&expected[0] * 2.0).unwrap(), "linear: dx, twice");
        assert_close(&dw, &(&expected[1] * 2.0).unwrap(), "linear: dw, twice");
    }
}

#[test]
fn rms_norm_agrees_with_its_twin() {
    let eps = 1e-5;
    for (n, width) in [(1, 1), (3, 5), (N, 37)] {
        let (x, w, dy) = (random("x", n, width), random("w", 1, width).flatten_all().unwrap(), random("dy", n, width));
        let (y, expected) = twin::differentiate(&[&x, &w], &dy, |v| twin::rms_norm(&v[0], &v[1], eps)).unwrap();
        let eps = eps as f32;
        assert_close(&kernels::rms_norm(Exec::Split, &x, &w, eps).unwrap(), &y, "rms norm");
        let dw = zeros(&w);
        let dx = kernels::rms_norm_backward(Exec::Split, &x, &w, eps, &dy, None, &dw).unwrap();
        if width > 1 {
            assert_close(&dx, &expected[0], "rms norm: dx"); // for width 1 it is 0 but for eps
        }
        assert_close(&dw, &expected[1], "rms norm: dw");
        let dx = kernels::rms_norm_backward(Exec::Split, &x, &w, eps, &dy, Some(dy.copy().unwrap()), &dw).unwrap();
        let residual = dy.to_dtype(DType::F64).unwrap();
        assert_close(&dx, &(&expected[0] + residual).unwrap(), "rms norm: dx onto a residual");
        assert_close(&dw, &(&expected[1] * 2.0).unwrap(), "rms norm: dw, twice");
    }
}

#[test]
fn conv1d_agrees_with_its_twin() {
    for (n, inputs, outputs) in [(1, 1, 1), (3, 5, 7), (N, 37, 21)] {
        let (x, w, dy) = (random("x", n, inputs), random("w", inputs, outputs), random("dy", n, outputs));
        let (y, expected) = twin::differentiate(&[&x, &w], &dy, |v| v[0].matmul(&v[1])).unwrap();
        assert_close(&kernels::conv1d(Exec::Split, &x, &w).unwrap(), &y, "conv1d");
        let dw = zeros(&w);
        let dx = kernels::conv1d_backward(Exec::Split, &x, &w, &dy, None, &dw).unwrap();
        assert_close(&dx, &expected[0], "conv1d: dx");
        assert_close(&dw, &expected[1], "conv1d: dw");
        let dx = kernels::conv1d_backward(Exec::Split, &x, &w, &dy, Some(dx), &dw).unwrap();
        assert_close(&dx, &(&expected[0] * 2.0).unwrap(), "conv1d: dx, twice");
        assert_close(&dw, &(&expected[1] * 2.0).unwrap(), "conv1d: dw, twice");
    }
}

#[test]
fn layer_norm_agrees_with_its_twin() {
    for (n, width) in [(1, 2), (3, 5), (N, 37)] {
        let eps = 1e-5;
        // Rows far from 0: what is subtracted is much larger than what is left.
        let (x, dy) = ((random("x", n, width) + 3.0).unwrap(), random("dy", n, width));
        let vector = |name: &str| flat(spread(name, width, 2.0));
        let (gain, bias) = (vector("gain"), vector("bias"));
        let twin = |v: &[Tensor]| twin::layer_norm(&v[0], &v[1], &v[2], eps);
        let (y, expected) = twin::differentiate(&[&x, &gain, &bias], &dy, twin).unwrap();
        let eps = eps as f32;
        assert_close(&kernels::layer_norm(Exec::Split, &x, &gain, &bias, eps).unwrap(), &y, "layer norm");
        let (dgain, dbias) = (zeros(&gain), zeros(&bias));
        let dx = kernels::layer_norm_backward(Exec::Split, &x, &gain, eps, &dy, None, &dgain).unwrap();
        kernels::bias_backward(Exec::Split, &dy, &dbias).unwrap();
        if width > 2 {
            assert_close(&dx, &expected[0], "layer norm: dx"); // for width 2 it is 0 but for eps
        }
        assert_close(&dgain, &expected[1], "layer norm: dgain");
        assert_close(&dbias, &expected[2], "layer norm: dbias");
        let residual = dy.to_dtype(DType::F64).unwrap();
        let dx = kernels::layer_norm_backward(Exec::Split, &x, &gain, eps, &dy, Some(dy.copy().unwrap()), &dgain);
        assert_close(&dx.unwrap(), &(&expected[0] + residual).unwrap(), "layer norm: dx onto a residual");
        assert_close(&dgain, &(&expected[1] * 2.0).unwrap(), "layer norm: dgain, twice");
    }
}

#[test]
fn gelu_agrees_with_its_twin() {
    for form in [Gelu::Exact, Gelu::Tanh] {
        for (n, width, scale) in [(1, 1, 1.0), (3, 5, 1.0), (N, 77, 1.0), (N, 77, 8.0)] {
            // Up to ±8 reaches both flat ends, up to ±1 the bend.
            let (x, dy) = ((random("x", n, width) * scale).unwrap(), random("dy", n, width));
            let (y, expected) = twin::differentiate(&[&x], &dy, |v| twin::gelu(form, &v[0])).unwrap();
            assert_close(&kernels::gelu(Exec::Split, form, &x).unwrap(), &y, "gelu");
            assert_close(&kernels::gelu_backward(Exec::Split, form, &x, &dy).unwrap(), &expected[0], "gelu: dx");
        }
    }
}

#[test]
fn fused_columns_are_dealt_out_and_taken_back() {
    for turns in [
        Turns { count: 1, widths: [6, 6, 6] },
        Turns { count: 3, widths: [4, 4, 4] },
        Turns { count: 2, widths: [4, 2, 1] },
    ] {
        let width: usize = turns.widths.iter().sum();
        for n in [1, 64, N] {
            let fused = random("fused", n, turns.count * width);
            let parts = kernels::split_fused(Exec::Split, turns, &fused).unwrap();
            let mut start = 0;
            for (part, own) in parts.iter().zip(turns.widths) {
                let columns = (0..turns.count).map(|turn| fused.narrow(1, turn * width + start, own).unwrap());
                let expected = Tensor::cat(&columns.collect::<Vec<_>>(), 1).unwrap();
                assert_eq!(bits(&vector(part)), bits(&vector(&expected)), "{turns:?}, {n} rows");
                start += own;
            }
            let joined = kernels::join_fused(Exec::Split, turns, parts.each_ref()).unwrap();
            assert_eq!(bits(&vector(&joined)), bits(&vector(&fused)), "{turns:?}, {n} rows");
        }
    }
}

#[test]
fn rope_turns_a_part_of_each_head() {
    // Heads of 10 of which 6 turn are heads of 6 that turn, with 4 elements between them that stay.
    let (x, frequencies) = (random("x", N, 30), kernels::rope_frequencies(6, 10_000.0));
    let rotated = |x: &Tensor, table: &RopeTable, inverse| {
        let x = x.copy().unwrap();
        kernels::rope(Exec::Split, &x, table, &LENGTHS, inverse).unwrap();
        x
    };
    let heads = |from: usize, width: usize| {
        let parts = (0..3).map(|head| x.narrow(1, 10 * head + from, width).unwrap());
        Tensor::cat(&parts.collect::<Vec<_>>(), 1).unwrap()
    };
    let table = RopeTable::of_part(130, &frequencies, 10);
    let whole = rotated(&heads(0, 6), &RopeTable::of_frequencies(130, &frequencies), false);
    let got = rotated(&x, &table, false);
    for head in 0..3 {
        let part = |t: &Tensor, from: usize, width: usize| {
            bits(&vector(&t.narrow(1, from, width).unwrap().contiguous().unwrap()))
        };
        assert_eq!(part(&got, 10 * head, 6), part(&whole, 6 * head, 6));
        assert_eq!(part(&got, 10 * head + 6, 4), part(&x, 10 * head + 6, 4));
    }
    let back: Vec<f64> = vector(&x).into_iter().map(f64::from).collect();
    assert_within(1e-6, [distance(&vector(&rotated(&got, &table, true)), &back)], "there and back"); // two roundings
}

#[test]
fn swiglu_agrees_with_its_twin() {
    for (n, width) in [(1, 1), (3, 5), (N, 77)] {
        // Gates up to ±20 reach both flat ends of the sigmoid.
        let gate = (random("gate", n, width) * 20.0).unwrap();
        let (up, dy) = (random("up", n, width), random("dy", n, width));
        let (y, expected) = twin::differentiate(&[&gate, &up], &dy, |v| twin::swiglu(&v[0], &v[1])).unwrap();
        assert_close(&kernels::swiglu(Exec::Split, &gate, &up).unwrap(), &y, "swiglu");
        let (dgate, dup) = kernels::swiglu_backward(Exec::Split, &gate, &up, &dy).unwrap();
        assert_close(&dgate, &expected[0], "swiglu: dgate");
        assert_close(&dup, &expected[1], "swiglu: dup");
    }
}

#[test]
fn rope_agrees_with_its_twin() {
    let (x, dy) = (random("x", N, 18), random("dy", N, 18));
    let rotate = |v: &[Tensor]| twin::rope(&v[0], HEADS.dim, 10_000.0, &LENGTHS);
    let (y, expected) = twin::differentiate(&[&x], &dy, rotate).unwrap();
    let table = RopeTable::new(130, HEADS.dim, 10_000.0);
    let rotated = |x: &Tensor, inverse| {
        let x = x.copy().unwrap();
        kernels::rope(Exec::Split, &x, &table, &LENGTHS, inverse).unwrap();
        x
    };
    assert_close(&rotated(&x, false), &y, "rope");
    assert_close(&rotated(&dy, true), &expected[0], "rope: dx");
}

#[test]
fn attention_agrees_with_its_twin() {
    for heads in [HEADS, Heads { queries: 3, keys: 3, dim: 2 }, Heads { queries: 6, keys: 2, dim: 10 }] {
        let (wide, narrow) = (heads.queries * heads.dim, heads.keys * heads.dim);
        // Scores of a few units, so that the softmax is neither flat nor hard.
        let (q, k) = ((random("q", N, wide) * 4.0).unwrap(), random("k", N, narrow));
        let (v, dy) = (random("v", N, narrow), random("dy", N, wide));
        let twin = |t: &[Tensor]| twin::attention(heads, &LENGTHS, &t[0], &t[1], &t[2]);
        let (y, expected) = twin::differentiate(&[&q, &k, &v], &dy, twin).unwrap();
        let (out, lse) = kernels::attention(Exec::Split, heads, &LENGTHS, &q, &k, &v).unwrap();
        assert_close(&out, &y, "attention");
        let (dq, dk, dv) =
            kernels::attention_backward(Exec::Split, heads, &LENGTHS, &q, &k, &v, &out, &lse, &dy).unwrap();
        assert_close(&dq, &expected[0], "attention: dq");
        assert_close(&dk, &expected[1], "attention: dk");
        assert_close(&dv, &expected[2], "attention: dv");
    }
}

#[test]
fn cross_entropy_agrees_with_its_twin() {
    // 530 rows are three tiles in scoring and two chunks in training; the large vocabularies are 20 and 196 tiles in
    // scoring, and 150 rows of them are three chunks in training.
    for (n, vocabulary, width) in [(1, 2, 1), (530, 131, 21), (150, 20_003, 5), (45, 200_003, 3)] {
        let what = format!("cross-entropy, {n} rows of {vocabulary}");
        let (x, w, targets) = (random("x", n, width), random("w", vocabulary, width), ids(n, vocabulary));
        let scale = Tensor::full(0.25, (n, 1), &Cpu).unwrap();
        let (nll, expected) =
            twin::differentiate(&[&x, &w], &scale, |v| twin::cross_entropy(&v[0], &v[1], &targets)).unwrap();
        let got = kernels::cross_entropy(Exec::Split, &x, &w, &targets).unwrap();
        let nll: Vec<f64> = nll.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(got.len(), n);
        // The sum of exponentials is f32, its logarithm f64: well within 1e-6 even over 200,003 terms.
        assert_within(1e-6, got.iter().zip(&nll).map(|(got, expected)| relative(*got, *expected)), &what);

        let dw = zeros(&w);
        let (again, dx) = kernels::cross_entropy_backward(Exec::Split, &x, &w, &targets, 0.25, &dw).unwrap();
        assert_within(1e-6, again.iter().zip(&got).map(|(a, b)| relative(*a, *b)), &format!("{what}: twice"));
        assert_close(&dx, &expected[0], &format!("{what}: dx"));
        assert_close(&dw, &expected[1], &format!("{what}: dw"));
        kernels::cross_entropy_backward(Exec::Split, &x, &w, &targets, 0.25, &dw).unwrap();
        assert_close(&dw, &(&expected[1] * 2.0).unwrap(), &format!("{what}: dw, twice"));
    }
}

#[test]
fn embedding_agrees_with_its_twin() {
    let (table, ids) = (random("table", 31, 7), ids(N, 31));
    let dy = random("dy", N, 7);
    let (y, expected) = twin::differentiate(&[&table], &dy, |v| twin::embedding(&v[0], &ids)).unwrap();
    assert_close(&kernels::embedding(Exec::Split, &table, &ids).unwrap(), &y, "embedding");
    let dtable = zeros(&table);
    kernels::embedding_backward(Exec::Split, &ids, &dy, &dtable).unwrap();
    assert_close(&dtable, &expected[0], "embedding: dtable");
    assert!(kernels::embedding(Exec::Split, &table, &[31]).is_err(), "an id beyond the table is refused");
}

/// A model none of whose widths is a multiple of 16.
fn odd_config(tied: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: 101,
        hidden_size: 21,
        intermediate_size: 35,
        num_hidden_layers: 2,
        num_attention_heads: HEADS.queries,
        num_key_value_heads: HEADS.keys,
        head_dim: HEADS.dim,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        max_position_embeddings: 130,
        tie_word_embeddings: tied,
        ..ModelConfig::preset("pico").unwrap()
    }
}

/// Weights five times those of the golden models, so that attention and gates are far from linear.
fn strong_weights(layout: &Layout) -> Vec<f32> {
    let strong = |p: &mixpool::model::Parameter| {
        let (base, scale) = if p.decays() { (0.0, 1.0) } else { (1.0, 0.5) };
        spread(&p.name, p.len(), scale).into_iter().map(move |value| base + value)
    };
    layout.parameters().iter().flat_map(strong).collect()
}

#[test]
fn the_whole_gradient_agrees_with_the_twin_and_with_finite_differences() {
    let (inputs, targets) = (ids(N, 101), common::tokens(1, N, 101));
    let batch = Sequences { tokens: &inputs, lengths: &LENGTHS };
    for tied in [true, false] {
        let config = odd_config(tied);
        let layout = Layout::of(&config);
        let weights = flat(strong_weights(&layout));
        let model = Transformer::new(&config, &layout, &weights, 130, Exec::Split).unwrap();
        let (loss, gradient) = common::loss_and_gradient(&model, &config, &layout, batch, &targets);

        let one = Tensor::new(1f64, &Cpu).unwrap();
        let twin_loss = |flat: &Tensor| twin::loss(&config, &layout, flat, batch, &targets);
        let (expected_loss, expected) = twin::differentiate(&[&weights], &one, |v| twin_loss(&v[0])).unwrap();
        let expected: Vec<f64> = expected[0].to_vec1().unwrap();
        assert_within(1e-6, [relative(loss, expected_loss.to_scalar().unwrap())], "loss"); // f32 against f64

        let exact: Vec<f64> = weights.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        let loss_at = |index: usize, step: f64| -> f64 {
            let mut moved = exact.clone();
            moved[index] += step;
            let moved = Tensor::from_vec(moved, layout.len(), &Cpu).unwrap();
            twin_loss(&moved).unwrap().to_scalar().unwrap()
        };
        for parameter in layout.parameters() {
            let (range, what) = (parameter.range(), format!("tied {tied}, {}", parameter.name));
            let scale = largest(&expected[range.clone()]);
            let error = distance(&gradient[range.clone()], &expected[range.clone()]) / scale;
            assert_within(TOLERANCE, [error], &what);
            // Central differences err by a third derivative times h²/6 (1e-9 or so) and by 1e-16 / h.
            let h = 1e-4;
            let index = range.max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap();
            let slope = (loss_at(index, h) - loss_at(index, -h)) / (2.0 * h);
            assert_within(TOLERANCE, [relative(f64::from(gradient[index]), slope)], &format!("{what}: difference"));
        }
    }
}

#[test]
fn packed_sequences_attend_as_if_each_were_alone() {
    let (wide, narrow) = (HEADS.queries * HEADS.dim, HEADS.keys * HEADS.dim);
    let (q, k, v) = (random("q", N, wide), random("k", N, narrow), random("v", N, narrow));
    let dout = random("dout", N, wide);
    let attend = |lengths: &[usize], start: usize, n: usize| -> Vec<Tensor> {
        let part = |x: &Tensor| x.narrow(0, start, n).unwrap();
        let (q, k, v, dout) = (part(&q), part(&k), part(&v), part(&dout));
        let (out, lse) = kernels::attention(Exec::Split, HEADS, lengths, &q, &k, &v).unwrap();
        let (dq, dk, dv) =
            kernels::attention_backward(Exec::Split, HEADS, lengths, &q, &k, &v, &out, &lse, &dout).unwrap();
        vec![out, lse, dq, dk, dv]
    };
    let packed = attend(&LENGTHS, 0, N);
    let mut start = 0;
    for length in LENGTHS {
        for (packed, alone) in packed.iter().zip(attend(&[length], start, length)) {
            let packed = packed.narrow(0, start, length).unwrap();
            assert_eq!(bits(&vector(&packed)), bits(&vector(&alone)), "sequence of {length}");
        }
        start += length;
    }
}

#[test]
fn packed_sequences_have_the_losses_they_have_alone() {
    let config = odd_config(true);
    let layout = Layout::of(&config);
    let model = Transformer::new(&config, &layout, &flat(strong_weights(&layout)), 130, Exec::Alone).unwrap();
    let (inputs, targets) = (ids(N, 101), common::tokens(1, N, 101));
    let nll = |start: usize, lengths: &[usize]| {
        let end = start + lengths.iter().sum::<usize>();
        let rows: Vec<usize> = (0..end - start).collect();
        model.nll(Sequences { tokens: &inputs[start..end], lengths }, &rows, &targets[start..end]).unwrap()
    };
    let packed = nll(0, &LENGTHS);
    let mut start = 0;
    for length in LENGTHS {
        // The matrix product may take another path for few rows, which reorders its additions: a few roundings.
        let errors = nll(start, &[length]).into_iter().zip(&packed[start..]).map(|(a, b)| relative(a, *b));
        assert_within(2e-6, errors, &format!("sequence of {length}"));
        start += length;
    }
}

/// What model, optimiser and merge compute, as bits, on shapes large enough that the work is really divided.
fn results(exec: Exec) -> Vec<(&'static str, Vec<u32>)> {
    let heads = Heads { queries: 6, keys: 2, dim: 22 };
    let config = ModelConfig {
        vocab_size: 1003,
        hidden_size: 132,
        intermediate_size: 250,
        num_attention_heads: heads.queries,
        num_key_value_heads: heads.keys,
        head_dim: heads.dim,
        ..odd_config(false)
    };
    let (lengths, n) = ([LENGTHS; 3].concat(), 3 * N);
    let (inputs, targets) = (ids(n, 1003), common::tokens(1, n, 1003));
    let batch = Sequences { tokens: &inputs, lengths: &lengths };
    let layout = Layout::of(&config);
    let weights = flat(common::weights(&layout));
    let model = Transformer::new(&config, &layout, &weights, 130, exec).unwrap();
    let nll = model.nll(batch, &(0..n).collect::<Vec<_>>(), &targets).unwrap();
    let (loss, gradient) = common::loss_and_gradient(&model, &config, &layout, batch, &targets);

    let bytes: Vec<u8> = gradient.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut merged = vec![0.0; gradient.len()];
    kernels::weighted_sum(&mut merged, &[(0.3, Floats::F32(&bytes)), (0.7, Floats::F32(&bytes))]);

    let gradient = flat(gradient);
    let norm = kernels::sum_of_squares(&gradient).unwrap();
    let (first, second) = (zeros(&weights), zeros(&weights));
    let step =
        AdamW { rate: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, gradient_scale: 0.5, step: 3 };
    kernels::adamw_step(&step, &weights, &first, &second, &gradient).unwrap();

    let wide = |values: &[f64]| values.iter().flat_map(|v| [v.to_bits() as u32, (v.to_bits() >> 32) as u32]).collect();
    vec![
        ("losses", wide(&nll)),
        ("mean loss", wide(&[loss])),
        ("gradient", bits(&vector(&gradient))),
        ("norm", wide(&[norm])),
        ("weights after a step", bits(&vector(&weights))),
        ("first moments", bits(&vector(&first))),
        ("second moments", bits(&vector(&second))),
        ("merge", bits(&merged)),
    ]
}

#[test]
fn no_bit_depends_on_how_the_work_is_divided() {
    let expected = results(Exec::Alone);
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for exec in [Exec::Split, Exec::Alone] {
            let got = pool.install(|| results(exec));
            for ((what, got), (_, expected)) in got.iter().zip(&expected) {
                assert!(got == expected, "{what} differ with {exec:?} on {threads} threads");
            }
        }
    }
}
