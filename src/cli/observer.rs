//! Terminal: progress bars on a terminal, plain lines elsewhere, and signals that ask to stop.

use super::print_error;
use crate::error::{Error, Result};
use crate::progress::Observer;
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Seconds between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Shows progress on stderr.
pub(super) struct Terminal {
    quiet: bool,
    bars: bool,
    signal: Arc<AtomicUsize>,
    current: Mutex<Option<Work>>,
}

struct Work {
    bar: Option<ProgressBar>,
    what: String,
    unit: &'static str,
    total: u64,
    first: Option<u64>,
    started: Instant,
    reported: Instant,
}

impl Terminal {
    /// Starts to watch for signals: the first SIGINT, SIGTERM or SIGUSR1 asks to stop, a second SIGINT ends at once.
    pub(super) fn new(quiet: bool) -> Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        let watch = || -> std::io::Result<()> {
            signal_hook::flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&again))?;
            signal_hook::flag::register(SIGINT, Arc::clone(&again))?;
            for number in [SIGINT, SIGTERM, SIGUSR1] {
                signal_hook::flag::register_usize(number, Arc::clone(&signal), number.unsigned_abs() as usize)?;
            }
            Ok(())
        };
        watch().map_err(Error::io("watch", "signals"))?;
        Ok(Self { quiet, bars: std::io::stderr().is_terminal(), signal, current: Mutex::new(None) })
    }

    fn with(&self, change: impl FnOnce(&mut Option<Work>)) {
        change(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn bar(&self, what: &str, total: u64, unit: &str) -> Option<ProgressBar> {
        if !self.bars {
            return None;
        }
        let template = format!("{{msg:32!}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} {{eta}} left");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Some(ProgressBar::new(total).with_style(style).with_message(what.to_owned()))
    }
}

impl Observer for Terminal {
    fn begin(&self, what: &str, total: u64, unit: &'static str) {
        if self.quiet {
            return;
        }
        let now = Instant::now();
        let bar = self.bar(what, total, unit);
        self.with(|work| {
            *work = Some(Work { bar, what: what.to_owned(), unit, total, first: None, started: now, reported: now });
        });
    }

    fn advance(&self, done: u64, message: &str) {
        self.with(|work| {
            if let Some(work) = work {
                work.advance(done, message);
            }
        });
    }

    fn finish(&self) {
        self.with(|work| {
            if let Some(work) = work.take() {
                work.finish();
            }
        });
    }

    fn note(&self, line: &str) {
        if !self.quiet {
            print_error(line);
        }
    }

    fn check(&self) -> Result<()> {
        let signal = match self.signal.load(Ordering::Relaxed) as i32 {
            0 => return Ok(()),
            SIGINT => "SIGINT",
            SIGTERM => "SIGTERM",
            _ => "SIGUSR1",
        };
        self.with(|work| *work = None);
        Err(Error::Stopped { signal })
    }

    /// Of the same signals, in plain lines.
    fn beside<'a>(&'a self) -> Box<dyn Observer + 'a> {
        Box::new(Self { quiet: self.quiet, bars: false, signal: Arc::clone(&self.signal), current: Mutex::new(None) })
    }
}

impl Work {
    fn advance(&mut self, done: u64, message: &str) {
        // A resumed run begins above 0; its rate counts from there.
        let first = *self.first.get_or_insert(done);
        match &self.bar {
            Some(bar) => {
                if bar.position() == 0 && first == done {
                    bar.set_position(done);
                    bar.reset_eta();
                }
                bar.set_position(done);
                bar.set_message(format!("{} {message}", self.what));
            }
            None if self.reported.elapsed() >= PLAIN_EVERY => {
                self.reported = Instant::now();
                let rate = (done - first) as f64 / self.started.elapsed().as_secs_f64();
                let left = if rate > 0.0 { (self.total.saturating_sub(done)) as f64 / rate } else { 0.0 };
                let Self { what, total, unit, .. } = self;
                print_error(&format!("{what}: {done}/{total} {unit}, {rate:.0}/s, {left:.0} s left {message}"));
            }
            None => {}
        }
    }

    fn finish(&self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let Self { what, total, unit, .. } = self;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        print_error(&format!("{what}: {total} {unit} in {seconds:.1} s"));
    }
}
