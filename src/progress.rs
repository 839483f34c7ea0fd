//! Observer: who is told how long work proceeds, and who may ask it to stop.

use crate::error::Result;

/// Receives progress and passes on requests to stop. The library prints nothing; the command line implements this.
pub trait Observer: Sync {
    /// A piece of work begins: `total` of `unit` (tokens, mixtures, ...).
    fn begin(&self, what: &str, total: u64, unit: &'static str);
    /// The work that began last has reached `done` of its total.
    fn advance(&self, done: u64, message: &str);
    /// The work that began last is finished.
    fn finish(&self);
    /// Something worth a line of its own.
    fn note(&self, line: &str);
    /// Polled between steps.
    ///
    /// # Errors
    /// [`crate::Error::Stopped`] once a signal has asked to stop.
    fn check(&self) -> Result<()>;
    /// An observer of work that runs beside other work: of the same requests to stop, and silent about progress unless it is made to tell
    /// one from the other.
    fn beside<'a>(&'a self) -> Box<dyn Observer + 'a> {
        Box::new(Beside(self))
    }
}

/// An observer of one of several pieces of work.
struct Beside<'a, O: ?Sized>(&'a O);

impl<O: Observer + ?Sized> Observer for Beside<'_, O> {
    fn begin(&self, _: &str, _: u64, _: &'static str) {}
    fn advance(&self, _: u64, _: &str) {}
    fn finish(&self) {}
    fn note(&self, line: &str) {
        self.0.note(line);
    }
    fn check(&self) -> Result<()> {
        self.0.check()
    }
    fn beside<'a>(&'a self) -> Box<dyn Observer + 'a> {
        Box::new(Beside(self.0))
    }
}

/// An observer that says nothing and never stops.
pub struct Silent;

impl Observer for Silent {
    fn begin(&self, _: &str, _: u64, _: &'static str) {}
    fn advance(&self, _: u64, _: &str) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn check(&self) -> Result<()> {
        Ok(())
    }
}
