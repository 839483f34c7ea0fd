//! Search: which candidate mixtures to try.
//!
//! Candidates come from every subset of the partitions ([`subsets`]), from a lattice over the simplex ([`grid`]), from
//! a Dirichlet distribution ([`dirichlet`]), from a file ([`read_candidates`]) or a table of another project ([`NumberTable`]); [`forward`] and [`inclusion`] choose
//! partitions by what candidates score.

mod selection;
mod tables;

pub use selection::{Inclusion, Step, forward, inclusion, keep, random_subsets};
pub use tables::{NumberRow, NumberTable};

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::error::{Error, Result};
use crate::rng::Stream;

/// A candidate mixture: the partitions it uses and their weights, each above 0, together 1.
pub type Weights = BTreeMap<String, f64>;

/// The most candidates one request may produce.
pub const MAX_CANDIDATES: u128 = 1_000_000;

/// How many subsets [`subsets`] returns for this many partitions; `u128::MAX` stands for any number above about 10^36.
///
/// # Examples
/// ```
/// assert_eq!(mixpool::search::count_subsets(4, 1..=2), 10);
/// ```
pub fn count_subsets(partitions: usize, sizes: RangeInclusive<usize>) -> u128 {
    let possible = *sizes.start()..=partitions.min(*sizes.end());
    possible.map(|size| binomial(partitions, size)).fold(0, u128::saturating_add)
}

/// Every subset of the partitions whose size lies in `sizes`, its members weighted equally.
///
/// Ordered by size, then as the partitions are.
///
/// # Errors
/// [`Error::Usage`] when `sizes` is empty or reaches outside 1 to the number of partitions, or when the subsets would
/// be more than [`MAX_CANDIDATES`].
///
/// # Examples
/// ```
/// let partitions = ["code".to_string(), "wiki".to_string()];
/// let candidates = mixpool::search::subsets(&partitions, 1..=2)?;
/// assert_eq!(candidates.len(), 3);
/// assert_eq!(candidates[2]["wiki"], 0.5);
/// # Ok::<(), mixpool::error::Error>(())
/// ```
pub fn subsets(partitions: &[String], sizes: RangeInclusive<usize>) -> Result<Vec<Weights>> {
    let (smallest, largest) = (*sizes.start(), *sizes.end());
    if smallest == 0 || smallest > largest || largest > partitions.len() {
        return Err(Error::Usage(format!(
            "expected subset sizes within 1..={}, the number of partitions, got {smallest}..={largest}; \
             choose them with --subsets A..=B",
            partitions.len()
        )));
    }
    let count = count_subsets(partitions.len(), sizes.clone());
    let asked = format!("the subsets of {} partitions of sizes {smallest}..={largest}", partitions.len());
    within_limit(count, &asked, "narrow the sizes with --subsets A..=B")?;

    let combinations = sizes.flat_map(|size| Combinations::new(partitions.len(), size));
    Ok(combinations.map(|members| equal_weights(partitions, &members)).collect())
}

/// Every mixture whose weights are whole multiples of `step`, in lexicographic order of the weights.
///
/// With n = 1 / `step` every weight is exactly the f64 nearest k / n; partitions of weight 0 are left out.
///
/// # Errors
/// [`Error::Usage`] when `step` does not divide 1 into a whole number of parts, when there are no partitions, or when
/// the mixtures would be more than [`MAX_CANDIDATES`].
///
/// # Examples
/// ```
/// let partitions = ["code".to_string(), "wiki".to_string()];
/// let candidates = mixpool::search::grid(&partitions, 0.25)?;
/// assert_eq!(candidates.len(), 5);
/// assert_eq!((candidates[1]["code"], candidates[1]["wiki"]), (0.25, 0.75));
/// # Ok::<(), mixpool::error::Error>(())
/// ```
pub fn grid(partitions: &[String], step: f64) -> Result<Vec<Weights>> {
    let parts = whole_parts(step)?;
    // Parts and bars stand in a row, and the parts between two neighbouring bars are one partition's share.
    let bars = at_least_one(partitions)? - 1;
    let places = parts.saturating_add(bars);
    within_limit(binomial(places, bars), &format!("a grid of step {step}"), "take a larger step or fewer partitions")?;

    Ok(Combinations::new(places, bars).map(|bars| lattice_point(partitions, parts, &bars)).collect())
}

/// `n` mixtures drawn from the symmetric Dirichlet distribution; the same arguments give the same mixtures.
///
/// A `concentration` of 1 is uniform over the simplex, a smaller one favours few partitions, a larger one the even
/// mixture. Weights are multiples of 2^-32, so they add up to exactly 1 in any order; those that round to 0 are left
/// out.
///
/// # Errors
/// [`Error::Usage`] when `concentration` lies outside 1e-6 to 1e6, when there are no partitions, or when `n` is
/// more than [`MAX_CANDIDATES`].
///
/// # Examples
/// ```
/// let partitions = ["code".to_string(), "web".to_string(), "wiki".to_string()];
/// let candidates = mixpool::search::dirichlet(&partitions, 10, 7, 1.0)?;
/// assert_eq!(candidates.len(), 10);
/// assert_eq!(candidates[0].values().sum::<f64>(), 1.0);
/// # Ok::<(), mixpool::error::Error>(())
/// ```
pub fn dirichlet(partitions: &[String], n: usize, seed: u64, concentration: f64) -> Result<Vec<Weights>> {
    if !(1e-6..=1e6).contains(&concentration) {
        return Err(Error::Usage(format!(
            "expected a Dirichlet concentration from 1e-6 to 1e6, got {concentration}; 1 is uniform over the simplex"
        )));
    }
    at_least_one(partitions)?;
    within_limit(n as u128, "the Dirichlet draws", "ask for fewer")?;

    let mut stream = Stream::new(seed, "search dirichlet");
    let mut draw = || {
        let ln_gammas: Vec<f64> = partitions.iter().map(|_| ln_gamma_variate(&mut stream, concentration)).collect();
        partitions.iter().cloned().zip(dyadic_softmax(&ln_gammas)).filter(|(_, weight)| *weight > 0.0).collect()
    };
    Ok((0..n).map(|_| draw()).collect())
}

/// The mixture expressions of a candidates file, each with the number of its line, from 1.
///
/// The file is a CSV table with a column `mixture` (an expression with a comma in quotes, other columns ignored) or
/// plain text with one expression a line. Blank lines and lines that begin with `#` are skipped.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read; [`Error::Input`] when it is not UTF-8, holds no candidate, or is a CSV
/// table with a row that does not fit its header, leaves `mixture` empty or spans lines.
pub fn read_candidates(path: &Path) -> Result<Vec<(usize, String)>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        Error::input(path.display(), format!("is not UTF-8 text (byte offset {})", error.valid_up_to()))
    })?;
    let lines: Vec<(usize, &str)> = (1..)
        .zip(text.strip_prefix('\u{feff}').unwrap_or(text).lines().map(str::trim))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .collect();

    let candidates = match lines.first().and_then(|(_, header)| mixture_column(header)) {
        Some(column) => csv_candidates(path, &lines, column)?,
        None => lines.into_iter().map(|(number, line)| (number, line.to_string())).collect(),
    };
    if candidates.is_empty() {
        return Err(Error::input(
            path.display(),
            "holds no candidate; expected one mixture a line, or a CSV table with a column 'mixture'",
        ));
    }
    Ok(candidates)
}

/// Where the column `mixture` stands, if the line is the header of a CSV table that has one.
fn mixture_column(line: &str) -> Option<usize> {
    let mut reader = csv::Reader::from_reader(line.as_bytes());
    reader.headers().ok()?.iter().position(|name| name.trim() == "mixture")
}

/// The field `column` of every row after the header. `lines` are numbered and hold neither blanks nor comments, which
/// the CSV reader would skip without counting them.
fn csv_candidates(path: &Path, lines: &[(usize, &str)], column: usize) -> Result<Vec<(usize, String)>> {
    let table = lines.iter().map(|(_, line)| *line).collect::<Vec<_>>().join("\n");
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let rows = lines[1..].iter().zip(reader.records());
    rows.map(|((number, _), row)| {
        let refuse = |problem: String| Error::input(format_args!("{}:{number}", path.display()), problem);
        let row = row.map_err(|error| refuse(csv_problem(&error)))?;
        if row.iter().any(|field| field.contains('\n')) {
            return Err(refuse("the quoted field spans lines; close the quote on its own line".to_string()));
        }
        match row.get(column).map(str::trim) {
            None | Some("") => {
                Err(refuse("the column 'mixture' is empty; write a mixture or drop the row".to_string()))
            }
            Some(mixture) => Ok((*number, mixture.to_string())),
        }
    })
    .collect()
}

fn csv_problem(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("expected {expected_len} fields as in the header, got {len}; quote a mixture that holds commas")
        }
        _ => error.to_string(),
    }
}

fn at_least_one(partitions: &[String]) -> Result<usize> {
    match partitions.len() {
        0 => Err(Error::Usage("expected at least one partition to mix, got none".to_string())),
        count => Ok(count),
    }
}

fn within_limit(count: u128, asked: &str, remedy: &str) -> Result<()> {
    if count > MAX_CANDIDATES {
        return Err(Error::Usage(format!(
            "expected at most {MAX_CANDIDATES} candidates, got {count} for {asked}; {remedy}"
        )));
    }
    Ok(())
}

/// The whole number that `step` divides 1 into.
fn whole_parts(step: f64) -> Result<usize> {
    let parts = 1.0 / step;
    // Beyond 2^53 every f64 is whole, so a larger quotient would prove nothing.
    let is_whole = (parts - parts.round()).abs() <= 1e-9 && (0.5..=9e15).contains(&parts);
    if !is_whole {
        return Err(Error::Usage(format!(
            "expected a grid step that divides 1 into a whole number of parts, got {step}; take 0.5, 0.25, 0.1, ..."
        )));
    }
    Ok(parts.round() as usize)
}

fn equal_weights(partitions: &[String], members: &[usize]) -> Weights {
    let weight = 1.0 / members.len() as f64;
    members.iter().map(|&member| (partitions[member].clone(), weight)).collect()
}

/// The mixture whose partitions get the parts between neighbouring bars, of `parts` in all.
fn lattice_point(partitions: &[String], parts: usize, bars: &[usize]) -> Weights {
    let ends = bars.iter().copied().chain([parts + bars.len()]);
    let starts = std::iter::once(0).chain(bars.iter().map(|bar| bar + 1));
    let shares = starts.zip(ends).map(|(start, end)| (end - start) as f64 / parts as f64);
    partitions.iter().cloned().zip(shares).filter(|(_, weight)| *weight > 0.0).collect()
}

/// How many subsets of size `k` a set of size `n` has; `u128::MAX` where the calculation overflows.
fn binomial(n: usize, k: usize) -> u128 {
    if k > n {
        return 0;
    }
    let step = |count: u128, i: u128| Some(count.checked_mul(n as u128 - i)? / (i + 1));
    (0..k.min(n - k) as u128).try_fold(1, step).unwrap_or(u128::MAX)
}

/// The ways to choose some of the numbers below `n`, each ascending, in lexicographic order.
struct Combinations {
    n: usize,
    next: Option<Vec<usize>>,
}

impl Combinations {
    fn new(n: usize, size: usize) -> Self {
        Self { n, next: (size <= n).then(|| (0..size).collect()) }
    }

    /// The combination after this one: the last number with room above it moves up and the later ones follow closely.
    fn after(&self, chosen: &[usize]) -> Option<Vec<usize>> {
        let size = chosen.len();
        let pivot = (0..size).rfind(|&i| chosen[i] < self.n - size + i)?;
        let moved = chosen[pivot] + 1;
        Some(chosen[..pivot].iter().copied().chain(moved..moved + size - pivot).collect())
    }
}

impl Iterator for Combinations {
    type Item = Vec<usize>;

    fn next(&mut self) -> Option<Vec<usize>> {
        let chosen = self.next.take()?;
        self.next = self.after(&chosen);
        Some(chosen)
    }
}

/// The logarithm of a Gamma(`shape`, 1) variate; in logarithms a tiny shape does not underflow to an all-zero mixture.
fn ln_gamma_variate(stream: &mut Stream, shape: f64) -> f64 {
    if shape < 1.0 {
        // Gamma(a) is distributed as Gamma(a + 1) * U^(1/a).
        return ln_gamma_variate(stream, shape + 1.0) + ln_uniform(stream) / shape;
    }
    // Marsaglia and Tsang, "A simple method for generating gamma variables", 2000.
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = stream.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && ln_uniform(stream) < 0.5 * x * x + d * (1.0 - v + v.ln()) {
            return d.ln() + v.ln();
        }
    }
}

/// The logarithm of a uniform variate in (0, 1], hence finite.
fn ln_uniform(stream: &mut Stream) -> f64 {
    (1.0 - stream.uniform()).ln()
}

/// exp(`logarithms`) normalised to sum 1, in multiples of 2^-32; the largest takes what the rounding leaves over.
fn dyadic_softmax(logarithms: &[f64]) -> Vec<f64> {
    const UNITS: f64 = (1_u64 << 32) as f64;
    let largest = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logarithms.iter().map(|value| (value - largest).exp()).sum();
    let rounded = |value: &f64| ((value - largest).exp() / total * UNITS).round() / UNITS;

    let mut weights: Vec<f64> = logarithms.iter().map(rounded).collect();
    let missing = 1.0 - weights.iter().sum::<f64>();
    if let Some(index) = logarithms.iter().position(|value| *value == largest) {
        weights[index] += missing;
    }
    weights
}
