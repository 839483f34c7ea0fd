//! Side by side: models trained on several devices at once, on each one at a time.

use super::{Pool, Recipe};
use crate::error::{Error, Result};
use crate::kernels::DeviceChoice;
use crate::progress::Observer;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

impl Pool {
    /// Trains what is missing of these recipes on all devices that are meant, where those are several and so is what is missing: by
    /// threads that claim models as processes do. Else it does nothing, and what another process is training is left out, so callers
    /// go through their recipes again.
    ///
    /// # Errors
    /// The first of those of [`Pool::get_or_train`] on any device; the others end the model that they are at.
    pub fn train_side_by_side(&self, recipes: &[(Recipe, String)], observer: &dyn Observer) -> Result<()> {
        let mut missing = VecDeque::new();
        for wanted in recipes {
            if self.manifest(&wanted.0.id()?)?.is_none() {
                missing.push_back(wanted);
            }
        }
        if missing.len() < 2 || self.device().is_cpu() {
            return Ok(());
        }
        let devices = self.device().each()?;
        if devices.len() < 2 {
            return Ok(());
        }
        observer.note(&format!("training on {} devices, one model at a time on each", devices.len()));
        let missing = Mutex::new(missing);
        let missing = || missing.lock().unwrap_or_else(PoisonError::into_inner);
        let work = |device: DeviceChoice| -> Result<()> {
            let observer = observer.beside();
            let own = Self::open(&self.root)?.computing_on(device, self.precision());
            loop {
                let Some((recipe, name)) = missing().pop_front() else { return Ok(()) };
                match own.get_or_train(recipe, name, &*observer) {
                    Ok(_) | Err(Error::Locked(_)) => {}
                    Err(error) => {
                        missing().clear();
                        return Err(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = devices.iter().map(|device| scope.spawn(|| work(*device))).collect();
            let ended = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(Error::Usage("a training thread ended unexpectedly".into())))
            });
            ended.collect::<Vec<_>>().into_iter().collect()
        })
    }
}
