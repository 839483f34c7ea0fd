//! Training: what several commands train, one after the other on a device, or one on each of several GPUs.

use super::Session;
use crate::error::{Error, Result};
use crate::kernels::DeviceChoice;
use crate::pool::{Partition, Pool, Recipe};
use crate::progress::Observer;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Trains what is missing. What another process is training is come back to when all else is done; `wait` for it then.
///
/// # Errors
/// [`Error::Locked`] when the others are not done yet and there is nothing else to do.
pub(super) fn train_all(pool: &Pool, mut left: Vec<(Recipe, String)>, wait: bool, session: &Session) -> Result<()> {
    let observer = &session.observer;
    let devices = pool.device().each()?;
    if devices.len() > 1 && left.len() > 1 {
        train_side_by_side(pool, &devices, &left, session)?; // what is left is what other processes are at
    }
    loop {
        let before = left.len();
        let mut locked = Vec::new();
        let mut refusal = None;
        for (recipe, name) in left {
            match pool.get_or_train(&recipe, &name, observer) {
                Err(error @ Error::Locked(_)) => {
                    refusal = Some(error);
                    locked.push((recipe, name));
                }
                trained => drop(trained?),
            }
        }
        match refusal {
            None => return Ok(()),
            Some(refusal) if !wait && locked.len() == before => return Err(refusal),
            Some(_) if locked.len() == before => std::thread::sleep(std::time::Duration::from_millis(500)),
            Some(_) => {}
        }
        observer.check()?;
        left = locked;
    }
}

/// Trains on several devices, on each one model at a time. Claims keep threads apart as they keep processes.
fn train_side_by_side(
    pool: &Pool,
    devices: &[DeviceChoice],
    wanted: &[(Recipe, String)],
    session: &Session,
) -> Result<()> {
    let left: Mutex<VecDeque<&(Recipe, String)>> = Mutex::new(wanted.iter().collect());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let give_up = || left.lock().unwrap_or_else(PoisonError::into_inner).clear();
    session.observer.note(&format!("training on {} devices, one model at a time on each", devices.len()));
    let work = |device: DeviceChoice| -> Result<()> {
        let observer = session.observer.beside();
        let own = Pool::open(pool.root())?.computing_on(device, pool.precision());
        while let Some((recipe, name)) = next() {
            match own.get_or_train(recipe, name, &observer) {
                Ok(_) | Err(Error::Locked(_)) => {}
                Err(error) => {
                    give_up();
                    return Err(error);
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = devices.iter().map(|device| scope.spawn(|| work(*device))).collect();
        let ended = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::Usage("a training thread ended unexpectedly".into())))
        });
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}

/// The seed model, trained if it is missing.
pub(super) fn train_seed(pool: &Pool, observer: &dyn Observer) -> Result<()> {
    pool.get_or_train(&pool.seed_recipe()?, "seed model", observer).map(|_| ())
}

/// The recipes of a partition's experts, but for adopted ones, and what progress calls them.
pub(super) fn expert_recipes(pool: &Pool, partition: &Partition) -> Result<Vec<(Recipe, String)>> {
    let units = partition.units.len();
    let wanted = (0..units).filter(|unit| !partition.adopted.contains_key(unit));
    let part = |unit| if units > 1 { format!(" {}/{units}", unit + 1) } else { String::new() };
    let named = |unit| Ok((pool.expert_recipe(partition, unit)?, format!("expert '{}'{}", partition.name, part(unit))));
    wanted.map(named).collect()
}
