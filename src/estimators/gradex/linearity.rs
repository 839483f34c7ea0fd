//! Linearity: how wrong the linearisation that `GradEx` rests on is, by the distance from θ*.
//!
//! The measure of the paper: the mean over sequences of ((f(θ*) + ⟨∇f, Δ⟩ − f(θ* + Δ)) / max(|f(θ*)|, |f(θ* + Δ)|))².

use super::super::{Options, Question};
use super::Fitted;
use super::features::{length, sequences};
use crate::error::Result;
use crate::mixture::Mixture;
use crate::pool::Pool;
use crate::text::Batch;
use serde::Serialize;

/// The error of the linearisation at one distance in one direction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinearityRow {
    /// Where to: `fitted` (P w of the mixture), `gradient` (the mean gradient of the sequences measured) or `trained` (to the
    /// model really trained on the mixture).
    pub direction: &'static str,
    /// ‖Δ‖ / ‖θ*‖ over the parameters that move.
    pub distance: f64,
    /// Sequences measured.
    pub sequences: usize,
    /// The error with exact gradients.
    pub exact: f64,
    /// The error with ⟨Pᵀ∇f, Pᵀ Δ⟩, or ⟨Pᵀ∇f, w⟩ where Δ = P w, in place of ⟨∇f, Δ⟩.
    pub projected: f64,
    /// The error of predicting no change.
    pub constant: f64,
    /// The mean of f(θ* + Δ) − f(θ*).
    pub change: f64,
}

/// One direction: a vector of length ‖θ*‖, what every gradient is along it, and what its projection says.
struct Direction {
    name: &'static str,
    way: Vec<f32>,
    projected: Vec<f64>,
    slopes: Vec<(f64, f64)>,
}

/// Measures the linearisation on the sequences that features come from, at distances given as shares of ‖θ*‖.
///
/// # Errors
/// Those of training θ* or the model of the mixture, and of running them.
pub fn linearity(
    question: &Question<'_>,
    options: &Options,
    mixture: &Mixture,
    distances: &[f64],
) -> Result<Vec<LinearityRow>> {
    let (pool, observer) = (question.pool, question.observer);
    let fitted = Fitted::new(question, options)?;
    let meta = &fitted.meta;
    let batch = all_sequences(pool, options.number("samples")?)?;
    let length_of_sequence = pool.settings().expert.sequence_length;
    let evaluator = pool.differentiator(length_of_sequence, length_of_sequence)?;
    let place = |way: &[f32], distance: f64| {
        evaluator.set(|out| {
            let moved: Vec<f32> =
                meta.parameters.iter().zip(way).map(|(start, way)| start + distance as f32 * way).collect();
            meta.write(&moved, out);
            Ok(())
        })
    };
    place(&meta.parameters, 0.0)?;

    let mut mean = vec![0f32; meta.parameters.len()];
    evaluator.log_odds_gradients(&batch, length_of_sequence, |_, gradient| {
        let gradient = meta.gradient(gradient);
        let moved = meta.moved.iter().cloned().flatten();
        moved.for_each(|index| mean[index] += gradient[index]);
        observer.check()
    })?;
    let (w, _) = fitted.direction(mixture)?;
    let mut ways = vec![("fitted", meta.back_project(fitted.projection, &w)), ("gradient", mean)];
    if !meta.is_adapted() {
        ways.push(("trained", to_truth(question, &fitted, mixture)?)); // a truth has no adapters
    }
    let aim = |(name, mut way): (&'static str, Vec<f32>)| {
        let factor = meta.norm / length(way.iter());
        way.iter_mut().for_each(|x| *x *= factor as f32);
        let projected = match name {
            "fitted" => w.iter().map(|w| w * factor).collect(),
            _ => meta.project(fitted.projection, &way),
        };
        Direction { name, way, projected, slopes: Vec::new() }
    };
    let mut directions: Vec<Direction> = ways.into_iter().map(aim).collect();
    let mut start = Vec::new();
    evaluator.log_odds_gradients(&batch, length_of_sequence, |output, gradient| {
        start.push(output);
        let gradient = meta.gradient(gradient);
        let feature = meta.project(fitted.projection, &gradient);
        for direction in &mut directions {
            let exact = gradient.iter().zip(&direction.way).map(|(g, x)| f64::from(*g) * f64::from(*x)).sum();
            let projected = feature.iter().zip(&direction.projected).map(|(g, x)| g * x).sum();
            direction.slopes.push((exact, projected));
        }
        observer.check()
    })?;

    observer.begin("run models at distances", (directions.len() * distances.len()) as u64, "models");
    let mut rows = Vec::new();
    for direction in &directions {
        for distance in distances {
            observer.check()?;
            place(&direction.way, *distance)?;
            let end = evaluator.log_odds(&batch, length_of_sequence)?;
            rows.push(row(direction, *distance, &start, &end));
            observer.advance(rows.len() as u64, direction.name);
        }
    }
    observer.finish();
    Ok(rows)
}

/// From θ* to the model really trained on a mixture, over the part that moves.
fn to_truth(question: &Question<'_>, fitted: &Fitted<'_>, mixture: &Mixture) -> Result<Vec<f32>> {
    let (pool, meta) = (question.pool, &fitted.meta);
    let truth = pool.get_or_train(&pool.mixture_recipe(mixture, question.tokens)?, "truth", question.observer)?;
    let truth = Pool::checkpoint(&pool.object_folder(&truth.id))?.read(pool.layout())?;
    let mut way = vec![0f32; truth.len()];
    meta.moved.iter().cloned().flatten().for_each(|index| way[index] = truth[index] - meta.parameters[index]);
    Ok(way)
}

fn row(direction: &Direction, distance: f64, start: &[f64], end: &[f64]) -> LinearityRow {
    let n = start.len() as f64;
    let error = |slope: &dyn Fn(usize) -> f64| {
        let one = |(index, (start, end)): (usize, (&f64, &f64))| {
            ((start + distance * slope(index) - end) / start.abs().max(end.abs())).powi(2)
        };
        start.iter().zip(end).enumerate().map(one).sum::<f64>() / n
    };
    LinearityRow {
        direction: direction.name,
        distance,
        sequences: start.len(),
        exact: error(&|index| direction.slopes[index].0),
        projected: error(&|index| direction.slopes[index].1),
        constant: error(&|_| 0.0),
        change: start.iter().zip(end).map(|(start, end)| end - start).sum::<f64>() / n,
    }
}

/// The sequences of every unit, one after the other.
fn all_sequences(pool: &Pool, samples: usize) -> Result<Batch> {
    let mut all = Batch { inputs: Vec::new(), targets: Vec::new() };
    for partition in pool.partitions()?.values() {
        for unit in 0..partition.units.len() {
            let batch = sequences(pool, partition, unit, samples)?;
            all.inputs.extend(batch.inputs);
            all.targets.extend(batch.targets);
        }
    }
    Ok(all)
}
