//! Cli: the command line's arguments and their dispatch; the only code that prints.

mod data;
mod demo;
mod exchange;
mod export;
mod filter;
mod models;
mod observer;
mod online;
mod question;
mod select;
mod self_bench;
mod self_test;
mod show;
mod store;
mod training;
mod validate;

use crate::error::{Error, Result};
use crate::files;
use crate::kernels::{DeviceChoice, Precision};
use crate::mixture::{Mixture, Notation, Weighting};
use crate::pool::Pool;
use crate::report::Format;
use clap::{Args, Parser, Subcommand};
use observer::Terminal;
use std::path::PathBuf;
use std::process::ExitCode;

/// Which mixture of data should a language model be trained on?
///
/// mixpool trains one expert per data partition, keeps them in a pool, and scores any mixture of partitions by averaging
/// the experts' parameters and measuring perplexity: n trainings answer 2^n questions.
#[derive(Parser)]
#[command(name = "mixpool", version, after_long_help = TOUR, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const TOUR: &str = "\
A tour, from text files to a ranking:
  mixpool tokenizer train general.txt code.txt wiki.txt --vocab 4096 --out tokenizer.json
  mixpool init recipe.yaml                      # model, tokenizer, training of seed and experts
  mixpool register code code.txt                # one partition each
  mixpool register wiki wiki.jsonl.gz --text-field content
  mixpool eval-set wiki-test held-out.txt
  mixpool train                                 # seed model, then one expert per unit
  mixpool adopt law runs/law-expert             # or an expert that was trained elsewhere
  mixpool score code+wiki code=0.7+wiki=0.3
  mixpool rank --csv ranking.csv                # every subset on every eval set
  mixpool validate --mixtures 8                 # how far to trust each estimator
  mixpool online --method dga --target wiki-test   # one run that finds its weights while it trains

Exit codes: 0 ok, 1 failed, 2 usage, 10 no pool here, 11 locked by another process, 12 pool damaged,
75 stopped and resumable, 130 interrupted. stdout is data, stderr is progress.";

#[derive(Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Folder of the pool
    #[arg(long, global = true, default_value = "pool", env = "MIXPOOL_POOL", value_name = "DIR")]
    pool: PathBuf,
    /// Where to compute: cpu, cuda (`train` uses every GPU, other commands the first) or cuda:N
    #[arg(long, global = true, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// How precisely a GPU computes scores, and which stored scores are read: f32, tf32 or bf16 [default: bf16 with a GPU, f32 without].
    /// Of `init` and `demo`: how models are trained, where the recipe does not say
    #[arg(long, global = true, value_enum, value_name = "P")]
    precision: Option<PrecisionArg>,
    /// Threads to use [default: all cores]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// How results are written to stdout
    #[arg(long, global = true, value_enum, default_value_t)]
    format: FormatArg,
    /// No progress on stderr
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(flatten)]
    care: Care,
}

/// How careful the whole process is.
#[derive(Args)]
#[command(next_help_heading = "Global options")]
struct Care {
    /// Hash models and tokens when they are first opened, and refuse what is damaged; `MIXPOOL_VERIFY_ON_LOAD=1` does the same
    #[arg(long, global = true)]
    verify_on_load: bool,
    /// Read files instead of mapping them, as is done on file systems that hosts share: takes memory for every model
    #[arg(long, global = true)]
    no_mmap: bool,
    /// Begin also when memory or disk seem too small
    #[arg(long, global = true)]
    ignore_limits: bool,
}

impl Care {
    fn apply(&self) -> Result<()> {
        let set = std::env::var_os("MIXPOOL_VERIFY_ON_LOAD").is_some_and(|value| !value.is_empty() && value != "0");
        if self.verify_on_load || set {
            crate::pool::verify_on_load();
        }
        if self.no_mmap {
            files::read_instead_of_mapping();
        }
        if self.ignore_limits {
            crate::pool::ignore_needs();
        }
        files::watch_maps()
    }
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    /// Train a byte-level BPE tokenizer
    #[command(subcommand)]
    Tokenizer(data::TokenizerCommand),
    Init(data::Init),
    Register(data::Register),
    EvalSet(data::EvalSet),
    Adopt(models::Adopt),
    Train(data::Train),
    Online(online::Online),
    Score(question::Score),
    Rank(question::Rank),
    Validate(validate::Validate),
    Compare(validate::Compare),
    Select(select::Select),
    Linearity(select::Linearity),
    Filter(filter::Filter),
    /// List the estimators and their options
    Estimators,
    /// Write rankings, scores or a merged model to files
    #[command(subcommand)]
    Export(export::Export),
    /// List what the pool holds
    Ls,
    Show(show::Show),
    Verify(show::Verify),
    Gc(store::Gc),
    Import(store::Import),
    #[command(subcommand, hide = true)]
    Pool(store::OfPool),
    #[command(hide = true)]
    SelfTest(self_test::SelfTest),
    #[command(hide = true)]
    SelfBench(self_bench::SelfBench),
}

/// What every command works with.
struct Session {
    pool: PathBuf,
    format: Format,
    observer: Terminal,
    device: DeviceChoice,
    asked_precision: Option<Precision>,
}

impl Session {
    fn open(&self) -> Result<Pool> {
        let pool = Pool::open(&self.pool)?.computing_on(self.device, self.precision());
        let kind = files::shared_kind(pool.root());
        let reading = kind.map(|kind| format!("the pool lies on {kind}: its files are read, not mapped"));
        pool.sharing().into_iter().chain(reading).for_each(|line| self.observer_note(&line));
        Ok(pool)
    }

    /// The precision of scores.
    fn precision(&self) -> Precision {
        self.asked_precision.unwrap_or(if self.device.is_cpu() { Precision::F32 } else { Precision::Bf16 })
    }

    /// The precision of training in a pool whose recipe names none.
    fn init_precision(&self) -> Precision {
        self.precision()
    }

    /// Refuses to train in another precision than the pool's experts are trained in: they would be other models.
    fn check_training_precision(&self, pool: &Pool) -> Result<()> {
        let theirs = pool.settings().expert.precision;
        match self.asked_precision.filter(|asked| *asked != theirs) {
            None => Ok(()),
            Some(asked) => Err(Error::Usage(format!(
                "'--precision {asked}': this pool's recipe trains in {theirs}, and models of another precision are other models; \
                 leave it out, or make a pool with 'mixpool init RECIPE.yaml --precision {asked}'"
            ))),
        }
    }
}

#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum FormatArg {
    /// Aligned columns, numbers rounded
    #[default]
    Table,
    /// As the table, for Markdown
    Markdown,
    /// Comma-separated, full precision
    Csv,
    /// One JSON value, full precision
    Json,
    /// One JSON object a line, full precision
    Jsonl,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Table => Self::Table,
            FormatArg::Markdown => Self::Markdown,
            FormatArg::Csv => Self::Csv,
            FormatArg::Json => Self::Json,
            FormatArg::Jsonl => Self::JsonLines,
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PrecisionArg {
    F32,
    Tf32,
    Bf16,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::F32 => Self::F32,
            PrecisionArg::Tf32 => Self::Tf32,
            PrecisionArg::Bf16 => Self::Bf16,
        }
    }
}

/// How mixtures on the command line are read.
#[derive(Args, Clone, Copy)]
struct NotationArgs {
    /// What `a+b` means: every partition the same (macro), or every unit the same (micro)
    #[arg(long, value_enum, default_value_t)]
    weighting: WeightingArg,
    /// Divide weights by their sum instead of refusing sums other than 1
    #[arg(long)]
    normalize: bool,
}

#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum WeightingArg {
    #[default]
    Partitions,
    Units,
}

impl NotationArgs {
    fn parse(self, texts: &[String], pool: &Pool) -> Result<Vec<Mixture>> {
        let partitions = pool.unit_counts()?;
        texts.iter().map(|text| Mixture::parse(text, &partitions, self.notation())).collect()
    }

    fn notation(self) -> Notation {
        let weighting = match self.weighting {
            WeightingArg::Partitions => Weighting::Partitions,
            WeightingArg::Units => Weighting::Units,
        };
        Notation { weighting, normalize: self.normalize }
    }
}

/// Parses the command line, runs the command, and reports a failure in one line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    cli.global.care.apply()?;
    let Global { pool, device, precision, threads, format, quiet, .. } = cli.global;
    let device: DeviceChoice = device.parse()?;
    device.each()?; // one that is not there is not found out after hours
    if threads == Some(0) {
        return Err(Error::Usage("'--threads 0': expected at least 1".into()));
    }
    let workers = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build();
    let workers = workers.map_err(|error| Error::Usage(format!("cannot start the threads: {error}")))?;
    let observer = Terminal::new(quiet)?;
    let session =
        Session { pool, format: format.into(), observer, device, asked_precision: precision.map(Precision::from) };
    // Inside the pool from the start, so that kernels find themselves on one of its threads.
    workers.install(|| dispatch(cli.command, &session))
}

fn dispatch(command: Command, session: &Session) -> Result<()> {
    match command {
        Command::Demo(command) => command.run(session),
        Command::Tokenizer(command) => command.run(session),
        Command::Init(command) => command.run(session),
        Command::Register(command) => command.run(session),
        Command::EvalSet(command) => command.run(session),
        Command::Adopt(command) => command.run(session),
        Command::Train(command) => command.run(session),
        Command::Online(command) => command.run(session),
        Command::Score(command) => command.run(session),
        Command::Rank(command) => command.run(session),
        Command::Validate(command) => command.run(session),
        Command::Compare(command) => command.run(session),
        Command::Select(command) => command.run(session),
        Command::Linearity(command) => command.run(session),
        Command::Filter(command) => command.run(session),
        Command::Estimators => validate::list(session),
        Command::Export(command) => command.run(session),
        Command::Ls => show::list(session),
        Command::Show(command) => command.run(session),
        Command::SelfTest(command) => command.run(session),
        Command::SelfBench(command) => command.run(session),
        Command::Verify(command) => command.run(session),
        Command::Gc(command) => command.run(session),
        Command::Import(command) | Command::Pool(store::OfPool::Import(command)) => command.run(session),
    }
}

/// Writes data to stdout; a reader that closed the pipe is not a failure.
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("write", "stdout")(error)),
        _ => Ok(()),
    }
}

/// One line on stderr for a failure.
fn complain(error: &Error) {
    print_error(&format!("mixpool: {}", one_line(&error.to_string())));
}

/// Writes a line to stderr in one piece; that it cannot be written (a full disk, a closed pipe) is no failure of the command.
fn print_error(line: &str) {
    use std::io::Write;
    let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
