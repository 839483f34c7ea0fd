//! Spec: a method and its options as people write them, `merged` or `merged:exponent=0.5`.

use super::{Estimator, METHODS, Method, Question};
use crate::error::{Error, Result, closest};
use std::collections::BTreeMap;
use std::fmt;

/// An option of a method: its name, its default, what it means.
pub struct OptionRow {
    /// Its name.
    pub name: &'static str,
    /// Its value when it is not given.
    pub default: &'static str,
    /// What it means, in one line.
    pub help: &'static str,
}

/// The options a method was asked for with; those not given have their defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options(BTreeMap<&'static str, String>);

impl Options {
    /// Every option and its value.
    pub(super) fn all(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    /// The text of an option.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// An option as a number.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is none.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<T> {
        let text = self.text(name);
        text.parse().map_err(|_| Error::Usage(format!("option '{name}={text}': expected a number")))
    }
}

/// A method with options. Displayed, it names only what differs from the defaults: the estimator's name in every table.
#[derive(Clone)]
pub struct Spec {
    /// The row of the registry.
    pub method: &'static Method,
    /// Its options.
    pub options: Options,
}

impl Spec {
    /// Reads `name` or `name:key=value,key=value`.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown method or option, naming the closest known one.
    ///
    /// # Examples
    /// ```
    /// use mixpool::estimators::Spec;
    /// assert_eq!(Spec::parse("merged:exponent=0.5")?.to_string(), "merged:exponent=0.5");
    /// assert_eq!(Spec::parse("merged:exponent=0")?.to_string(), "merged");
    /// # Ok::<(), mixpool::Error>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self> {
        let (name, given) = text.trim().split_once(':').unwrap_or((text.trim(), ""));
        let method = METHODS.iter().find(|method| method.name == name).ok_or_else(|| {
            let names = METHODS.iter().map(|method| method.name);
            Error::Usage(format!("unknown estimator '{name}'{}", hint(name, names, "known")))
        })?;
        let mut options: BTreeMap<_, _> = method.options.iter().map(|row| (row.name, row.default.to_owned())).collect();
        for option in given.split(',').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').ok_or_else(|| {
                Error::Usage(format!("estimator '{text}': expected key=value after ':', got '{option}'"))
            })?;
            let row = method.options.iter().find(|row| row.name == key.trim()).ok_or_else(|| {
                let names = method.options.iter().map(|row| row.name);
                Error::Usage(format!("estimator '{name}' has no option '{key}'{}", hint(key, names, "it has")))
            })?;
            options.insert(row.name, value.trim().to_owned());
        }
        Ok(Self { method, options: Options(options) })
    }

    /// The method's first phase.
    ///
    /// # Errors
    /// Those of the method.
    pub fn fit<'a>(&self, question: &Question<'a>) -> Result<Box<dyn Estimator + 'a>> {
        (self.method.fit)(question, &self.options)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.method.name)?;
        let differs = |row: &&OptionRow| self.options.text(row.name) != row.default;
        for (i, row) in self.method.options.iter().filter(differs).enumerate() {
            write!(f, "{}{}={}", if i == 0 { ":" } else { "," }, row.name, self.options.text(row.name))?;
        }
        Ok(())
    }
}

fn hint(wrong: &str, known: impl Iterator<Item = &'static str> + Clone, word: &str) -> String {
    let near = closest(wrong, known.clone()).map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
    let list: Vec<&str> = known.collect();
    format!(" ({word}: {}){near}", if list.is_empty() { "none".to_owned() } else { list.join(", ") })
}
