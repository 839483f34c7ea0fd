//! Demo command: the whole job on the text that ships with the project.

use super::Session;
use crate::error::Result;
use clap::Args;

#[derive(Args)]
pub(super) struct Demo {}
impl Demo {
    pub(super) fn run(self, _session: &Session) -> Result<()> {
        Ok(())
    }
}
