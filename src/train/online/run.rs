//! Run: the loop of an online method: draw by the weights, step, tell the policy, and keep what happened.

use super::super::{CurvePoint, Pace, State, TrainConfig, Trainer, take_steps};
use super::{Alignments, Method, Policy, Progress, Seen, Weighting};
use crate::error::{Error, Result};
use crate::kernels::Compute;
use crate::model::{Layout, ModelConfig};
use crate::progress::Observer;
use crate::rng::Stream;
use crate::text::{Batch, Batches};
use std::time::Instant;

/// Where the sequences of an online run come from.
pub struct OnlineSources {
    /// One unit per domain, to train on.
    pub domains: Batches,
    /// The same domains in another order, to compare gradients.
    pub probes: Batches,
    /// The target's sequences, as one unit; only for methods that compare gradients.
    pub target: Option<Batches>,
    /// The arms as histograms over the domains, each summing to 1; empty when every domain is an arm.
    pub basis: Vec<Vec<f64>>,
    /// The weights of the arms before the first step.
    pub start: Vec<f64>,
}

/// A model in training on weights that change.
pub struct OnlineTrainer<'a> {
    config: &'a TrainConfig,
    method: &'a Method,
    policy: Box<dyn Policy>,
    trainer: Trainer<'a>,
    sources: OnlineSources,
    progress: Progress,
}

impl<'a> OnlineTrainer<'a> {
    /// Starts on the processor from a state: fresh, or as it was stored.
    ///
    /// # Errors
    /// [`Error::Usage`] when the method compares gradients and there is no target; [`Error::Mismatch`] when the layout
    /// does not fit the model.
    pub fn new(
        model: &ModelConfig,
        layout: &'a Layout,
        config: &'a TrainConfig,
        method: &'a Method,
        sources: OnlineSources,
        state: State,
    ) -> Result<Self> {
        Self::on(&Compute::cpu(), model, layout, config, method, sources, state)
    }

    /// As [`OnlineTrainer::new`], wherever `compute` says.
    ///
    /// # Errors
    /// As [`OnlineTrainer::new`], and those of the device.
    pub fn on(
        compute: &Compute,
        model: &ModelConfig,
        layout: &'a Layout,
        config: &'a TrainConfig,
        method: &'a Method,
        mut sources: OnlineSources,
        mut state: State,
    ) -> Result<Self> {
        method.check()?;
        if method.probe() > 0 && sources.target.is_none() {
            return Err(Error::Usage("this method compares gradients with a target's; name one".into()));
        }
        let policy = method.policy();
        let domains = sources.domains.drawn().len();
        let progress = state.online.take().unwrap_or_else(|| {
            let mut progress = Progress {
                policy: policy.start(sources.start.clone()),
                drawn: vec![0; domains],
                probed: vec![0; domains],
                target_drawn: 0,
                trajectory: Vec::new(),
                alignments: Vec::new(),
                gradient_tokens: 0,
                gradient_seconds: 0.0,
                seconds: 0.0,
            };
            let weights = domain_weights(&sources.basis, &progress.policy.weights, domains);
            progress.trajectory.push(Weighting { step: 0, weights });
            progress
        });
        sources.domains.go_on_from(&progress.drawn);
        sources.probes.go_on_from(&progress.probed);
        sources.target.iter_mut().for_each(|target| target.go_on_from(&[progress.target_drawn]));
        let trainer = Trainer::on(compute, model, layout, config, state)?;
        Ok(Self { config, method, policy, trainer, sources, progress })
    }

    /// As [`Trainer::recomputing`].
    #[must_use]
    pub fn recomputing(mut self, recomputes: bool) -> Self {
        self.trainer = self.trainer.recomputing(recomputes);
        self
    }

    /// Runs to the end of the schedule, as [`Trainer::run`] does.
    ///
    /// # Errors
    /// Those of [`Trainer::run`].
    pub fn run(
        &mut self,
        name: &str,
        observer: &dyn Observer,
        save_every: f64,
        mut save: impl FnMut(&State) -> Result<()>,
    ) -> Result<()> {
        let (config, done, pace) = (self.config, self.trainer.step, Pace { name, observer, save_every });
        take_steps(config, done, pace, self, |run| run.step(name), |run| save(&run.state()?))
    }

    /// One optimiser step, and what the policy makes of it.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a loss, a gradient or an alignment is NaN or infinite.
    pub fn step(&mut self, name: &str) -> Result<CurvePoint> {
        let start = Instant::now();
        let (arms, batch) = self.draw();
        let losses = self.trainer.gradient_of(&batch)?;
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        let point = self.trainer.descend(mean, name)?;
        let by_arm = mean_by_arm(&arms, &losses, self.progress.policy.weights.len());
        self.tell(&Seen::Losses(point.step, &by_arm));
        if self.policy.wants_alignments(point.step) && point.step < self.config.steps {
            self.compare()?;
        }
        self.progress.seconds += start.elapsed().as_secs_f64();
        Ok(point)
    }

    /// The state now.
    pub fn state(&self) -> Result<State> {
        let mut progress = self.progress.clone();
        progress.drawn = self.sources.domains.drawn();
        progress.probed = self.sources.probes.drawn();
        progress.target_drawn = self.sources.target.as_ref().map_or(0, |target| target.drawn()[0]);
        Ok(State { online: Some(progress), ..self.trainer.state()? })
    }

    /// The sequences of the next step and the arm of each: independent draws from the weights.
    fn draw(&mut self) -> (Vec<usize>, Batch) {
        let purpose = format!("online draws of step {}", self.trainer.step);
        let mut stream = Stream::new(self.config.seed, &purpose);
        let weights = &self.progress.policy.weights;
        let mut arms = Vec::with_capacity(self.config.batch_size);
        let mut domains = Vec::with_capacity(self.config.batch_size);
        for _ in 0..self.config.batch_size {
            let arm = choose(weights, stream.uniform());
            arms.push(arm);
            domains.push(self.sources.basis.get(arm).map_or(arm, |histogram| choose(histogram, stream.uniform())));
        }
        (arms, self.sources.domains.next_of(&domains))
    }

    /// Compares a mini-batch of every arm with one of the target and tells the policy.
    fn compare(&mut self) -> Result<()> {
        let start = Instant::now();
        let probe = self.method.probe();
        let step = self.trainer.step;
        let OnlineSources { probes, target, basis, .. } = &mut self.sources;
        let Some(target) = target else { return Ok(()) };
        let arms = self.progress.policy.weights.len();
        let mut stream = Stream::new(self.config.seed, &format!("online probes of step {step}"));
        let batches = (0..arms).map(|arm| {
            let domain = |_| basis.get(arm).map_or(arm, |histogram| choose(histogram, stream.uniform()));
            probes.next_of(&(0..probe).map(domain).collect::<Vec<_>>())
        });
        let alignments = self.trainer.alignments(&target.next_of(&vec![0; probe]), batches)?;
        let before = self.progress.policy.weights.clone();
        self.tell(&Seen::Alignments(&alignments));
        let after = self.progress.policy.weights.clone();
        self.progress.alignments.push(Alignments { step, before, alignments, after });
        self.progress.gradient_tokens += ((arms + 1) * probe * self.config.sequence_length) as u64;
        self.progress.gradient_seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Lets the policy change the weights, and notes them if it did.
    fn tell(&mut self, seen: &Seen<'_>) {
        let Progress { policy, trajectory, .. } = &mut self.progress;
        self.policy.observe(policy, seen);
        let last = trajectory.last().map(|weighting| weighting.weights.as_slice());
        let weights = domain_weights(&self.sources.basis, &policy.weights, last.map_or(0, <[f64]>::len));
        if last != Some(&weights) {
            trajectory.push(Weighting { step: self.trainer.step, weights });
        }
    }
}

/// The index whose share of [0, 1) holds `u`; the last one of positive weight when rounding leaves a gap at the end.
fn choose(weights: &[f64], u: f64) -> usize {
    let mut rest = u * weights.iter().sum::<f64>();
    for (index, weight) in weights.iter().enumerate() {
        rest -= weight;
        if rest < 0.0 {
            return index;
        }
    }
    weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
}

/// Σⱼ wⱼ pⱼ, or w itself when every domain is an arm.
fn domain_weights(basis: &[Vec<f64>], arms: &[f64], domains: usize) -> Vec<f64> {
    if basis.is_empty() {
        return arms.to_vec();
    }
    let share = |domain: usize| arms.iter().zip(basis).map(|(weight, histogram)| weight * histogram[domain]).sum();
    (0..domains).map(share).collect()
}

/// The mean loss of each arm's sequences; none for an arm without any.
fn mean_by_arm(arms: &[usize], losses: &[f64], n: usize) -> Vec<Option<f64>> {
    let mut sums = vec![(0.0, 0u32); n];
    for (arm, loss) in arms.iter().zip(losses) {
        sums[*arm].0 += loss;
        sums[*arm].1 += 1;
    }
    sums.iter().map(|(sum, count)| (*count > 0).then(|| sum / f64::from(*count))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_falls_into_its_share_and_never_on_weight_0() {
        assert_eq!([0.0, 0.24, 0.26, 0.999].map(|u| choose(&[0.25, 0.0, 0.75], u)), [0, 0, 2, 2]);
        assert_eq!(choose(&[0.3, 0.3, 0.0], 1.0), 1);
    }

    #[test]
    fn histograms_mix_by_the_weights_of_the_arms() {
        assert_eq!(domain_weights(&[vec![1.0, 0.0, 0.0], vec![0.0, 0.5, 0.5]], &[0.25, 0.75], 3), [0.25, 0.375, 0.375]);
        assert_eq!(mean_by_arm(&[0, 2, 0], &[1.0, 5.0, 2.0], 3), [Some(1.5), None, Some(5.0)]);
    }
}
