//! Calls of the libraries' functions: how many there were, and which are to fail.

use crate::settings::Injection;
use std::collections::BTreeMap;

/// Calls by function.
#[derive(Debug)]
pub struct Calls {
    counts: BTreeMap<&'static str, u64>,
    fail: Vec<Injection>,
    trace: bool,
}

impl Calls {
    /// None so far.
    pub fn new(fail: Vec<Injection>, trace: bool) -> Self {
        Self { counts: BTreeMap::new(), fail, trace }
    }

    /// Counts a call; the code it is to return instead of doing anything, if it is to fail.
    pub fn enter(&mut self, function: &'static str) -> Option<i32> {
        let count = self.counts.entry(function).or_default();
        *count += 1;
        let hit = |injection: &&Injection| {
            injection.function == function && (injection.nth == *count || injection.onwards && *count > injection.nth)
        };
        let code = self.fail.iter().find(hit).map(|injection| injection.code);
        if self.trace {
            eprintln!("virtual GPU: {function}, call {count}{}", if code.is_some() { ", fails" } else { "" });
        }
        code
    }

    /// How often each function was called.
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_fails_and_those_after_it_where_asked() {
        let injection = |onwards| Injection { function: "cuInit".into(), nth: 2, onwards, code: 7 };
        let mut once = Calls::new(vec![injection(false)], false);
        assert_eq!([(); 3].map(|()| once.enter("cuInit")), [None, Some(7), None]);
        let mut ever = Calls::new(vec![injection(true)], false);
        assert_eq!([(); 3].map(|()| ever.enter("cuInit")), [None, Some(7), Some(7)]);
        assert_eq!((ever.enter("cuCtxSynchronize"), ever.counts()["cuInit"]), (None, 3));
    }
}
