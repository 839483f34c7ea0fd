//! Show commands: ls, show, verify.

use super::{Session, complain, print};
use crate::error::{Error, Result};
use crate::pool::{Damage, MERGEABLE, Manifest, Pool, Recipe, Start};
use crate::report::render;
use clap::Args;
use serde::Serialize;

/// One line of `ls`.
#[derive(Serialize)]
struct Row {
    kind: &'static str,
    name: String,
    n_docs: Option<u64>,
    n_tokens: Option<u64>,
    n_bytes: Option<u64>,
    units: Option<usize>,
    trained: Option<usize>,
    loss: Option<f64>,
    relative_update: Option<f64>,
}

impl Row {
    fn of(kind: &'static str, name: &str) -> Self {
        let name = name.to_owned();
        Self {
            kind,
            name,
            n_docs: None,
            n_tokens: None,
            n_bytes: None,
            units: None,
            trained: None,
            loss: None,
            relative_update: None,
        }
    }

    fn with_tokens(mut self, pool: &Pool, hash: &str) -> Result<Self> {
        let tokens = pool.tokens(hash)?;
        let manifest = tokens.manifest();
        self.n_docs = Some(manifest.n_docs);
        self.n_tokens = Some(manifest.n_tokens);
        self.n_bytes = Some(manifest.n_bytes);
        Ok(self)
    }
}

/// Lists seed model, partitions, eval sets and models trained by online methods.
pub(super) fn list(session: &Session) -> Result<()> {
    let pool = session.open()?;
    let seed = pool.manifest(&pool.seed_recipe()?.id()?)?;
    let mut first = Row::of("seed", "seed");
    if let Some(training) = &pool.settings().seed {
        first = first.with_tokens(&pool, &training.tokens)?;
    }
    first.trained = Some(usize::from(seed.is_some()));
    first.loss = seed.and_then(|seed| seed.final_loss);
    let mut rows = vec![first];
    for (name, partition) in pool.partitions()? {
        let experts = experts(&pool, &name)?;
        let trained: Vec<&Manifest> = experts.iter().flatten().collect();
        let mut row = Row::of("partition", &name);
        if let Some(tokens) = &partition.tokens {
            row = row.with_tokens(&pool, tokens)?;
        }
        row.units = Some(experts.len());
        row.trained = Some(trained.len());
        row.loss = mean(trained.iter().map(|expert| expert.final_loss));
        row.relative_update = mean(trained.iter().map(|expert| expert.relative_update));
        rows.push(row);
    }
    for name in pool.eval_names()? {
        rows.push(Row::of("eval set", &name).with_tokens(&pool, &pool.eval_binding(&name)?.tokens)?);
    }
    for manifest in pool.manifests()?.iter().filter(|manifest| manifest.recipe.online.is_some()) {
        let mut row = Row::of("online", &short(&manifest.id));
        row.n_tokens = Some(manifest.n_tokens);
        row.loss = manifest.final_loss;
        row.relative_update = manifest.relative_update;
        rows.push(row);
    }
    print(&render(&rows, session.format)?)
}

fn experts(pool: &Pool, name: &str) -> Result<Vec<Option<Manifest>>> {
    pool.unit_experts(&pool.partition(name)?)
}

fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values: Vec<f64> = values.flatten().collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Show a partition, an eval set, the seed model or an object
///
/// NAME is a partition, an eval set, `seed`, or the first digits of an object's id. For a partition: its units, and for
/// each expert how far it moved from the seed model (the relative update), its loss and its cost.
#[derive(Args)]
pub(super) struct Show {
    /// What to show
    name: String,
}

/// One model, as `show` prints it.
#[derive(Serialize)]
struct ModelRow {
    object: String,
    name: String,
    start: String,
    n_parameters: u64,
    n_tokens: u64,
    steps: u64,
    learning_rate: f64,
    final_loss: Option<f64>,
    relative_update: Option<f64>,
    seconds: f64,
    weights: String,
}

impl ModelRow {
    fn new(name: &str, manifest: &Manifest) -> Self {
        let Recipe { start, train, .. } = &manifest.recipe;
        let start = match start {
            Start::Scratch => "scratch".to_owned(),
            Start::Object(id) => short(id),
            Start::Imported(_) => "imported".to_owned(),
            Start::Adapter { base, .. } => format!("adapter of {}", short(base)),
        };
        Self {
            object: short(&manifest.id),
            name: name.to_owned(),
            start,
            n_parameters: manifest.n_parameters,
            n_tokens: manifest.n_tokens,
            steps: train.steps,
            learning_rate: train.learning_rate,
            final_loss: manifest.final_loss,
            relative_update: manifest.relative_update,
            seconds: manifest.seconds,
            weights: short(&manifest.weights),
        }
    }
}

fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

impl Show {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        let name = self.name.as_str();
        let models = if name == "seed" {
            pool.manifest(&pool.seed_recipe()?.id()?)?.into_iter().collect()
        } else if pool.partitions()?.contains_key(name) {
            note_unmergeable(&pool, std::slice::from_ref(&self.name), session)?;
            experts(&pool, name)?.into_iter().flatten().collect()
        } else if pool.eval_names()?.iter().any(|eval| eval == name) {
            let row = Row::of("eval set", name).with_tokens(&pool, &pool.eval_binding(name)?.tokens)?;
            return print(&render(&[row], session.format)?);
        } else {
            objects_beginning_with(&pool, name)?
        };
        if models.is_empty() {
            session.observer_note(&format!("'{name}' has no trained model yet; run 'mixpool train'"));
        }
        let rows: Vec<ModelRow> = models.iter().map(|manifest| ModelRow::new(name, manifest)).collect();
        print(&render(&rows, session.format)?)
    }
}

impl Session {
    pub(super) fn observer_note(&self, line: &str) {
        crate::progress::Observer::note(&self.observer, line);
    }
}

/// One line when experts of these partitions moved less or more than merging is known to bear.
pub(super) fn note_unmergeable(pool: &Pool, partitions: &[String], session: &Session) -> Result<()> {
    let found = pool.unmergeable(partitions)?;
    if !found.is_empty() {
        let each: Vec<String> = found.iter().map(|(name, moved)| format!("{name} {moved:.3}")).collect();
        session.observer_note(&format!(
            "the relative update of {} expert(s) lies outside {} to {}, where merges are known to rank well: {}",
            found.len(),
            MERGEABLE.start(),
            MERGEABLE.end(),
            each.join(", ")
        ));
    }
    Ok(())
}

pub(super) fn objects_beginning_with(pool: &Pool, prefix: &str) -> Result<Vec<Manifest>> {
    let found: Vec<Manifest> =
        pool.manifests()?.into_iter().filter(|manifest| manifest.id.starts_with(prefix)).collect();
    if found.is_empty() || prefix.len() < 4 {
        return Err(Error::Usage(format!(
            "'{prefix}' is neither a partition, an eval set, 'seed', nor the beginning of an object's id; \
             'mixpool ls' lists the names"
        )));
    }
    Ok(found)
}

/// Check that everything stored is whole
///
/// Opens every binding, manifest, token file, model and score log and compares sizes; with --deep every byte is read and
/// compared with the recorded hash. Each damage is one line on stderr that ends with the command that mends it.
///
/// With --repair, whatever can be made again without you is: models are trained again by the same recipe, tokens made again
/// if the files they came from still give the same ones, score logs rid of what is damaged. Damaged files go to the folder
/// `quarantine` of the pool; what is left is listed, with exit code 12.
///
/// Example: mixpool verify --deep --repair
#[derive(Args)]
pub(super) struct Verify {
    /// Read every byte
    #[arg(long)]
    deep: bool,
    /// Make again what is damaged, as far as that can be done without you
    #[arg(long)]
    repair: bool,
}

impl Verify {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        if self.repair
            && let Some(line) = Pool::repair_settings(&session.pool)?
        {
            session.observer_note(&line);
        }
        let pool = session.open()?;
        let found = if self.repair { pool.repair(self.deep, &session.observer)? } else { pool.verify(self.deep)? };
        let mut damages: Vec<Error> = found.damages.into_iter().map(with_repair).collect();
        let Some(last) = damages.pop() else {
            let (checked, logs) = (found.checked, found.logs);
            session.observer_note(&format!("{checked} objects and token files and {logs} score logs are whole"));
            return Ok(());
        };
        damages.iter().for_each(complain);
        Err(last)
    }
}

/// A damage with the command that mends it.
fn with_repair(damage: Damage) -> Error {
    match damage.error {
        Error::Damaged { path, problem } => Error::damaged(path, format!("{problem}; repair: {}", damage.repair)),
        other => other,
    }
}
