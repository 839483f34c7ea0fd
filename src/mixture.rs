//! Mixture: a point on the simplex over partitions, and the notation in which people write it.

use crate::error::{Error, Result, closest};
use std::collections::BTreeMap;
use std::fmt;

/// How far from 1 weights may sum.
const TOLERANCE: f64 = 1e-6;

/// How bare names (`code+wiki`) are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weighting {
    /// Every partition the same (*macro* in Na et al. 2024).
    #[default]
    Partitions,
    /// Every unit the same, so a partition weighs as much as it has units (*micro*).
    Units,
}

/// How mixtures are read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Notation {
    /// What bare names mean.
    pub weighting: Weighting,
    /// Divide weights by their sum instead of refusing sums other than 1.
    pub normalize: bool,
}

/// The part of one partition in a mixture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// Weight of the partition, positive.
    pub weight: f64,
    /// The first so many of its units; the weight is divided equally among them.
    pub units: usize,
    /// Whether these are all units the partition has.
    pub whole: bool,
}

/// Weights over partitions: positive, finite, summing to 1 within 10⁻⁶; partitions of weight 0 are dropped.
///
/// Weights are kept as they were written; nothing is renormalised unless asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixture {
    shares: BTreeMap<String, Share>,
}

impl Mixture {
    /// Reads `code+wiki` (equal weights), `code=0.7+wiki=0.3` (weights), `code:3+wiki:1` (units) or `all`.
    ///
    /// `partitions` maps every known partition to its number of units.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown or repeated partition, a weight that is negative or not a number, weights that
    /// do not sum to 1, more units than there are, or styles mixed in one expression.
    ///
    /// # Examples
    /// ```
    /// use mixpool::mixture::{Mixture, Notation};
    /// let known = [("code".to_owned(), 2), ("wiki".to_owned(), 1)].into();
    /// let mixture = Mixture::parse("wiki=0.3+code=0.7", &known, Notation::default())?;
    /// assert_eq!(mixture.to_string(), "code=0.7+wiki=0.3");
    /// assert_eq!(mixture.members().count(), 3); // two units of code, one of wiki
    /// # Ok::<(), mixpool::Error>(())
    /// ```
    pub fn parse(text: &str, partitions: &BTreeMap<String, usize>, notation: Notation) -> Result<Self> {
        let text = text.trim();
        if text == "all" {
            let names: Vec<&str> = partitions.keys().map(String::as_str).collect();
            if names.is_empty() {
                return Err(Error::Usage("mixture 'all' is empty: no partition is registered".into()));
            }
            return Self::parse(&names.join("+"), partitions, notation);
        }
        let terms = text.split('+').map(|term| Term::parse(term, text, partitions)).collect::<Result<Vec<_>>>()?;
        for (i, term) in terms.iter().enumerate() {
            if terms[..i].iter().any(|earlier| earlier.name == term.name) {
                return Err(refuse(text, format!("partition '{}' is named twice", term.name)));
            }
        }
        let amounts = terms.iter().map(|term| term.amount(notation.weighting)).collect::<Vec<_>>();
        let bare_or_units = terms.iter().all(|term| !matches!(term.part, Part::Weight(_)));
        if !bare_or_units && !terms.iter().all(|term| matches!(term.part, Part::Weight(_))) {
            return Err(refuse(text, "some partitions have a weight and some have none; give all of them one".into()));
        }
        let sum: f64 = amounts.iter().sum();
        if !bare_or_units && !notation.normalize && (sum - 1.0).abs() > TOLERANCE {
            return Err(refuse(
                text,
                format!("the weights sum to {sum}, expected 1; correct them or pass --normalize"),
            ));
        }
        let divisor = if bare_or_units || notation.normalize { sum } else { 1.0 };
        let shares = terms.iter().zip(&amounts).filter(|(_, amount)| **amount > 0.0).map(|(term, amount)| {
            let units = term.units();
            (term.name.to_owned(), Share { weight: amount / divisor, units, whole: units == term.available })
        });
        let shares: BTreeMap<_, _> = shares.collect();
        if shares.is_empty() {
            return Err(refuse(text, "every weight is 0".into()));
        }
        Ok(Self { shares })
    }

    /// A mixture of whole partitions with the given weights.
    ///
    /// # Errors
    /// As [`Mixture::parse`].
    pub fn from_weights(weights: &BTreeMap<String, f64>, partitions: &BTreeMap<String, usize>) -> Result<Self> {
        let equal = weights.values().all(|weight| *weight == 1.0 / weights.len() as f64);
        let terms = weights.iter().map(|(name, weight)| if equal { name.clone() } else { format!("{name}={weight}") });
        Self::parse(&terms.collect::<Vec<_>>().join("+"), partitions, Notation::default())
    }

    /// Partitions and their shares, sorted by name.
    pub fn shares(&self) -> &BTreeMap<String, Share> {
        &self.shares
    }

    /// Partition names and weights, sorted by name.
    pub fn weights(&self) -> BTreeMap<String, f64> {
        self.shares.iter().map(|(name, share)| (name.clone(), share.weight)).collect()
    }

    /// Every unit in the mixture: partition, unit index, weight of the unit.
    pub fn members(&self) -> impl Iterator<Item = (&str, usize, f64)> {
        self.shares.iter().flat_map(|(name, share)| {
            (0..share.units).map(move |unit| (name.as_str(), unit, share.weight / share.units as f64))
        })
    }

    /// Number of partitions.
    pub fn size(&self) -> usize {
        self.shares.len()
    }
}

/// The notation that reads back as the same mixture.
impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equal = self.shares.values().all(|share| share.weight == 1.0 / self.shares.len() as f64);
        let whole = self.shares.values().all(|share| share.whole);
        for (i, (name, share)) in self.shares.iter().enumerate() {
            let plus = if i == 0 { "" } else { "+" };
            match (whole, equal) {
                (true, true) => write!(f, "{plus}{name}")?,
                (true, false) => write!(f, "{plus}{name}={}", share.weight)?,
                (false, _) => write!(f, "{plus}{name}:{}", share.units)?,
            }
        }
        Ok(())
    }
}

/// What one partition is given in an expression.
enum Part {
    Bare,
    Weight(f64),
    Units(usize),
}

struct Term<'a> {
    name: &'a str,
    part: Part,
    available: usize,
}

impl<'a> Term<'a> {
    fn parse(term: &'a str, text: &str, partitions: &BTreeMap<String, usize>) -> Result<Self> {
        let term = term.trim();
        let (name, part) = if let Some((name, weight)) = term.split_once('=') {
            (name.trim(), Part::Weight(parse_weight(weight.trim(), text)?))
        } else if let Some((name, units)) = term.split_once(':') {
            let parsed = units.trim().parse().ok().filter(|n| *n > 0);
            let units = parsed
                .ok_or_else(|| refuse(text, format!("'{units}' is not a number of units (a whole number above 0)")))?;
            (name.trim(), Part::Units(units))
        } else {
            (term, Part::Bare)
        };
        let available = *partitions.get(name).ok_or_else(|| refuse(text, unknown(name, partitions.keys())))?;
        if let Part::Units(units) = part
            && units > available
        {
            return Err(refuse(text, format!("partition '{name}' has {available} unit(s), not {units}")));
        }
        Ok(Self { name, part, available })
    }

    fn units(&self) -> usize {
        if let Part::Units(units) = self.part { units } else { self.available }
    }

    fn amount(&self, weighting: Weighting) -> f64 {
        match (&self.part, weighting) {
            (Part::Weight(weight), _) => *weight,
            (Part::Bare, Weighting::Partitions) => 1.0,
            (Part::Bare, Weighting::Units) | (Part::Units(_), _) => self.units() as f64,
        }
    }
}

fn parse_weight(weight: &str, text: &str) -> Result<f64> {
    let value: f64 =
        weight.parse().map_err(|_| refuse(text, format!("'{weight}' is not a weight; expected a number")))?;
    if !value.is_finite() || value < 0.0 {
        return Err(refuse(text, format!("weight {weight} is not allowed; weights are finite and not negative")));
    }
    Ok(value)
}

/// "unknown partition 'wikii' (registered: code, wiki); did you mean 'wiki'?"
pub fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> String {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let hint = closest(name, known.iter().copied()).map(|c| format!("; did you mean '{c}'?")).unwrap_or_default();
    let listed = if known.is_empty() { "none".into() } else { known.join(", ") };
    format!("unknown partition '{name}' (registered: {listed}){hint}")
}

fn refuse(text: &str, problem: String) -> Error {
    Error::Usage(format!("mixture '{text}': {problem}"))
}

/// Checks a name for a partition or an eval set.
///
/// # Errors
/// [`Error::Usage`] unless it is 1 to 64 letters, digits, `.`, `_` or `-`, begins with a letter or digit, and is not
/// one of the words `all` and `seed`.
pub fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || name.len() > 64 || !name.chars().all(allowed) || matches!(name, "all" | "seed") {
        return Err(Error::Usage(format!(
            "'{name}' cannot be a name; use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit, \
             and not the words 'all' and 'seed'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeMap<String, usize> {
        [("code", 2), ("math", 1), ("wiki", 1)].map(|(name, units)| (name.to_owned(), units)).into()
    }

    fn parse(text: &str) -> Result<Mixture> {
        Mixture::parse(text, &known(), Notation::default())
    }

    #[test]
    fn every_notation_reads_back_as_itself() {
        for text in ["code", "code+wiki", "code=0.7+wiki=0.3", "code:1+wiki:1", "code+math+wiki"] {
            let mixture = parse(text).unwrap();
            assert_eq!(mixture.to_string(), text);
            assert_eq!(parse(&mixture.to_string()).unwrap(), mixture);
        }
        assert_eq!(parse("all").unwrap(), parse("wiki+math+code").unwrap());
    }

    #[test]
    fn weights_may_be_by_partition_or_by_unit() {
        let by = |weighting| {
            let notation = Notation { weighting, normalize: false };
            Mixture::parse("code+wiki", &known(), notation).unwrap().weights()["code"]
        };
        assert_eq!(by(Weighting::Partitions), 0.5);
        assert_eq!(by(Weighting::Units), 2.0 / 3.0);
    }

    #[test]
    fn unit_weights_sum_to_the_partition_weight() {
        let mixture = parse("code=0.7+wiki=0.3").unwrap();
        let members: Vec<_> = mixture.members().collect();
        assert_eq!(members, [("code", 0, 0.35), ("code", 1, 0.35), ("wiki", 0, 0.3)]);
    }

    #[test]
    fn normalising_is_never_silent() {
        let normalize = Notation { normalize: true, ..Notation::default() };
        assert!(parse("code=1+wiki=3").is_err());
        assert_eq!(Mixture::parse("code=1+wiki=3", &known(), normalize).unwrap().weights()["wiki"], 0.75);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, reason) in [
            ("wikii", "did you mean 'wiki'"),
            ("code+code", "named twice"),
            ("code=-1+wiki=2", "not negative"),
            ("code=nan+wiki=1", "finite"),
            ("code=x", "not a weight"),
            ("code=0.5+wiki=0.4", "sum to 0.9"),
            ("code=0.5+wiki", "some have none"),
            ("code:3", "has 2 unit(s), not 3"),
            ("code:0", "not a number of units"),
            ("code=0", "sum to 0"),
            ("", "unknown partition ''"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(reason), "'{text}' gave: {message}");
        }
    }

    #[test]
    fn a_weight_of_zero_drops_the_partition() {
        assert_eq!(parse("code=1+wiki=0").unwrap(), parse("code").unwrap());
    }
}
