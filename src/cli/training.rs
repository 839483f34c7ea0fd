//! Training: what several commands train, one after the other on a device, or one on each of several GPUs.

use super::Session;
use crate::error::{Error, Result};
use crate::pool::{Partition, Pool, Recipe};
use crate::progress::Observer;

/// Trains what is missing. What another process is training is come back to when all else is done; `wait` for it then.
///
/// # Errors
/// [`Error::Locked`] when the others are not done yet and there is nothing else to do.
pub(super) fn train_all(pool: &Pool, mut left: Vec<(Recipe, String)>, wait: bool, session: &Session) -> Result<()> {
    let observer = &session.observer;
    pool.train_side_by_side(&left, observer)?; // what is left is what other processes are at
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
