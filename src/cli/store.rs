//! Store commands: gc and import.

use super::{Session, print};
use crate::error::Result;
use crate::estimators::outdated;
use crate::pool::Pool;
use crate::report::render;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::path::PathBuf;

/// Remove what nothing in the pool names
///
/// Tokens that no partition or eval set is bound to, models that no name leads to, what was worked out of models that are
/// gone, answers about experts that are gone, claims of dead processes and states of finished runs. Models really trained on
/// mixtures are kept, and score logs always. What a live process is at is left alone. Each thing is listed with its size.
///
/// Example: mixpool gc --dry-run
#[derive(Args)]
pub(super) struct Gc {
    /// List what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Also remove models that were really trained on mixtures
    #[arg(long)]
    trained_mixtures: bool,
}

/// One thing that is removed.
#[derive(Serialize)]
struct GarbageRow {
    path: String,
    bytes: u64,
    why: &'static str,
}

impl Gc {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        let found = pool.collect(self.dry_run, self.trained_mixtures, &outdated(&pool)?)?;
        let (n, bytes) = (found.len(), found.iter().map(|garbage| garbage.bytes).sum::<u64>());
        let row = |garbage: crate::pool::Garbage| {
            let path = garbage.path.strip_prefix(pool.root()).unwrap_or(&garbage.path).display().to_string();
            GarbageRow { path, bytes: garbage.bytes, why: garbage.why }
        };
        let rows: Vec<GarbageRow> = found.into_iter().map(row).collect();
        print(&render(&rows, session.format)?)?;
        let done = if self.dry_run { "would be removed" } else { "removed" };
        session.observer_note(&format!("{n} thing(s), {bytes} bytes {done}"));
        Ok(())
    }
}

/// `import` under its long name, `pool import`.
#[derive(Subcommand)]
pub(super) enum OfPool {
    Import(Import),
}

/// Bring in what another pool holds
///
/// Both pools must have been made from equal recipes. Tokens, models, names and scores are copied and their hashes verified;
/// what is here already is kept. The same import again goes on where one was stopped.
///
/// Example: mixpool --pool ours import ../theirs
#[derive(Args)]
pub(super) struct Import {
    /// The other pool's folder
    other: PathBuf,
    /// Bind names that mean something else here as PREFIX and their name
    #[arg(long, value_name = "PREFIX")]
    rename_prefix: Option<String>,
}

impl Import {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        let other = Pool::open(&self.other)?;
        let done = pool.import_pool(&other, self.rename_prefix.as_deref(), &session.observer)?;
        session.observer_note(&format!(
            "brought in: {} token folder(s), {} model(s), {} score(s), {} name(s)",
            done.tokens, done.objects, done.scores, done.names
        ));
        Ok(())
    }
}
