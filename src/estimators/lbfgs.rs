//! Lbfgs: the minimum of a smooth function of a few dozen variables, from a given start.
//!
//! Limited-memory BFGS (Nocedal and Wright 2006, algorithms 7.4 and 7.5) with a line search for the strong Wolfe
//! conditions (algorithms 3.5 and 3.6, bracketing and zooming in one loop). Plain f64 loops in a fixed order: the same
//! start gives the same minimum.

use std::collections::VecDeque;

/// Pairs of steps and changes of the gradient that are remembered; more than there are variables is as good as BFGS.
const MEMORY: usize = 30;
/// Wolfe's sufficient decrease and curvature.
const DECREASE: f64 = 1e-4;
const CURVATURE: f64 = 0.9;
/// Evaluations of one line search.
const TRIALS: usize = 30;

/// A point with the function's value and gradient there.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) at: Vec<f64>,
    pub(super) value: f64,
    pub(super) gradient: Vec<f64>,
}

impl Point {
    fn new(at: Vec<f64>, function: &impl Fn(&[f64], &mut [f64]) -> f64) -> Self {
        let mut gradient = vec![0.0; at.len()];
        let value = function(&at, &mut gradient);
        Self { at, value, gradient }
    }
}

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Steps at most.
    pub(super) steps: usize,
    /// Stop when a step lowers the value by no more than this fraction of it.
    pub(super) decrease: f64,
    /// Stop when no component of the gradient is larger.
    pub(super) gradient: f64,
}

/// Goes down from `start`; `function` returns its value and writes its gradient. The result is never above the start.
pub(super) fn minimize(start: Vec<f64>, limits: Limits, function: impl Fn(&[f64], &mut [f64]) -> f64) -> Point {
    let mut point = Point::new(start, &function);
    let mut memory = VecDeque::with_capacity(MEMORY);
    for _ in 0..limits.steps {
        if point.gradient.iter().all(|slope| slope.abs() <= limits.gradient) {
            break;
        }
        let mut direction = descent(&point.gradient, &memory);
        if dot(&direction, &point.gradient) >= 0.0 {
            memory.clear(); // rounding has spoilt it
            direction = descent(&point.gradient, &memory);
        }
        let first = if memory.is_empty() { 1.0 / dot(&direction, &direction).sqrt().max(1.0) } else { 1.0 };
        let Some(next) = search(&point, &direction, first, &function) else {
            if memory.is_empty() {
                break;
            }
            memory.clear();
            continue;
        };
        let gained = point.value - next.value;
        remember(&mut memory, &point, &next);
        point = next;
        if gained <= limits.decrease * point.value.abs() {
            break;
        }
    }
    point
}

/// A step, the change of the gradient over it, and 1 / (their product).
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    inverse: f64,
}

fn remember(memory: &mut VecDeque<Pair>, from: &Point, to: &Point) {
    let (step, change) = (difference(&to.at, &from.at), difference(&to.gradient, &from.gradient));
    let product = dot(&step, &change);
    if product > f64::EPSILON * dot(&change, &change) {
        if memory.len() == MEMORY {
            memory.pop_front();
        }
        memory.push_back(Pair { step, change, inverse: 1.0 / product });
    }
}

/// −H g by the two loops over the memory.
fn descent(gradient: &[f64], memory: &VecDeque<Pair>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|slope| -slope).collect();
    let mut shares = Vec::with_capacity(memory.len());
    for pair in memory.iter().rev() {
        let share = pair.inverse * dot(&pair.step, &direction);
        add(&mut direction, -share, &pair.change);
        shares.push(share);
    }
    if let Some(pair) = memory.back() {
        let scale = 1.0 / (pair.inverse * dot(&pair.change, &pair.change));
        direction.iter_mut().for_each(|value| *value *= scale);
    }
    for (pair, share) in memory.iter().zip(shares.iter().rev()) {
        let back = pair.inverse * dot(&pair.change, &direction);
        add(&mut direction, share - back, &pair.step);
    }
    direction
}

/// A trial of the line search: how far along the direction, the value and the slope there.
#[derive(Clone, Copy)]
struct Trial {
    step: f64,
    value: f64,
    slope: f64,
}

/// A point along `direction` that fulfils the strong Wolfe conditions, or else the lowest one found, if any is lower.
fn search(from: &Point, direction: &[f64], first: f64, function: &impl Fn(&[f64], &mut [f64]) -> f64) -> Option<Point> {
    let origin = Trial { step: 0.0, value: from.value, slope: dot(&from.gradient, direction) };
    let (mut low, mut high): (Trial, Option<Trial>) = (origin, None);
    let mut lowest = None;
    let mut step = first;
    for _ in 0..TRIALS {
        let mut at = from.at.clone();
        add(&mut at, step, direction);
        let point = Point::new(at, function);
        let trial = Trial { step, value: point.value, slope: dot(&point.gradient, direction) };
        let enough = trial.value <= origin.value + DECREASE * step * origin.slope;
        // A value that is not finite is never low enough.
        if !(enough && trial.slope.is_finite()) || (low.step > 0.0 && trial.value >= low.value) {
            high = Some(trial);
        } else {
            if trial.slope.abs() <= -CURVATURE * origin.slope {
                return Some(point);
            }
            let beyond = high.map_or(trial.slope >= 0.0, |high| trial.slope * (high.step - low.step) >= 0.0);
            if beyond {
                high = Some(low);
            }
            low = trial;
            lowest = Some(point);
        }
        step = match high {
            None => 3.0 * step,
            Some(high) => between(low, high),
        };
        if high.is_some_and(|high| (high.step - low.step).abs() <= f64::EPSILON * low.step.max(f64::MIN_POSITIVE)) {
            break;
        }
    }
    lowest.filter(|point| point.value < from.value)
}

/// The minimum of the cubic through two trials (Nocedal and Wright, equation 3.59), kept off the ends of the interval.
fn between(low: Trial, high: Trial) -> f64 {
    let width = high.step - low.step;
    let sum = low.slope + high.slope - 3.0 * (low.value - high.value) / (low.step - high.step);
    let root = (sum * sum - low.slope * high.slope).sqrt() * width.signum();
    let share = 1.0 - (high.slope + root - sum) / (high.slope - low.slope + 2.0 * root);
    let share = if share.is_finite() { share.clamp(0.1, 0.9) } else { 0.5 };
    low.step + share * width
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn add(to: &mut [f64], times: f64, values: &[f64]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += times * value);
}

fn difference(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x - y).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { steps: 2000, decrease: 0.0, gradient: 1e-10 };

    #[test]
    fn rosenbrocks_valley_ends_at_one() {
        let valley = |x: &[f64], gradient: &mut [f64]| {
            gradient.fill(0.0);
            let mut value = 0.0;
            for i in 0..x.len() - 1 {
                let (bend, rest) = (x[i + 1] - x[i] * x[i], 1.0 - x[i]);
                value += 100.0 * bend * bend + rest * rest;
                gradient[i] -= 400.0 * x[i] * bend + 2.0 * rest;
                gradient[i + 1] += 200.0 * bend;
            }
            value
        };
        let found =
            minimize(vec![-1.2; 10].into_iter().enumerate().map(|(i, x)| x + 0.1 * i as f64).collect(), LIMITS, valley);
        assert!(found.at.iter().all(|x| (x - 1.0).abs() < 1e-8) && found.value < 1e-16, "{found:?}");
    }

    #[test]
    fn an_ill_conditioned_quadratic_is_solved() {
        let bowl = |x: &[f64], gradient: &mut [f64]| {
            let scale = |i: usize| 10.0_f64.powi(i as i32 - 4);
            gradient.iter_mut().enumerate().for_each(|(i, slope)| *slope = scale(i) * (x[i] - i as f64));
            x.iter().enumerate().map(|(i, x)| 0.5 * scale(i) * (x - i as f64).powi(2)).sum()
        };
        let found = minimize(vec![50.0; 9], LIMITS, bowl);
        let worst = found.at.iter().enumerate().map(|(i, x)| (x - i as f64).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-5, "{found:?}"); // gradient below 1e-10 over curvatures from 1e-4
    }

    #[test]
    fn a_wall_of_infinity_is_kept_off() {
        let barrier = |x: &[f64], gradient: &mut [f64]| {
            gradient[0] = 1.0 - 1.0 / x[0];
            if x[0] > 0.0 { x[0] - x[0].ln() } else { f64::INFINITY }
        };
        let found = minimize(vec![30.0], LIMITS, barrier);
        assert!((found.at[0] - 1.0).abs() < 1e-8, "{found:?}");
    }
}
