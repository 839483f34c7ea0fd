//! Sources: the files that paths, folders and patterns of a command line stand for, in a fixed order.

use super::documents::{Format, format_of};
use crate::error::{Error, Result};
use crate::files;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// The files that `paths` stand for.
///
/// - A file stands for itself.
/// - A folder that Hugging Face `datasets` saved (`save_to_disk`) stands for its shards, in the order of its `state.json`.
/// - Any other folder stands for all files below it, sorted by path; hidden ones are passed over. They must be of one format.
/// - A path with `*`, `?`, `[...]` or `**` that is no file stands for the files that match it, sorted; hidden ones only where the
///   pattern says so.
///
/// # Errors
/// [`Error::Io`] when a path does not exist; [`Error::Input`] when a folder or a pattern yields no file, a folder holds files of
/// several formats or of none, or one file is named twice.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        files.extend(expand_one(path)?);
    }
    let mut seen = BTreeSet::new();
    for file in &files {
        let real = file.canonicalize().map_err(Error::io("open", file))?;
        if !seen.insert(real) {
            return Err(Error::input(file.display(), "the file is named twice; its documents would count double"));
        }
    }
    Ok(files)
}

fn expand_one(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        return if path.join(DICTIONARY).exists() {
            Err(refuse_dictionary(path))
        } else if path.join(STATE).exists() {
            shards(path)
        } else {
            folder(path)
        };
    }
    let text = path.to_string_lossy();
    if path.exists() || !text.contains(['*', '?', '[']) {
        return Ok(vec![path.to_path_buf()]);
    }
    let refuse = |problem: String| Error::input(path.display(), problem);
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let found = glob::glob_with(&text, options).map_err(|error| refuse(format!("is no pattern ({error})")))?;
    let mut files = Vec::new();
    for found in found {
        let found = found.map_err(|error| refuse(format!("cannot be searched ({error})")))?;
        if found.is_file() {
            files.push(found);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(refuse("no file matches this pattern; folders are not searched unless it says '**'".into()));
    }
    Ok(files)
}

/// Every file below a folder, sorted.
fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    walk(path, &mut found)?;
    found.sort();
    let mut first: Option<(&PathBuf, Format)> = None;
    for file in &found {
        let format = format_of(file).map(|(format, _)| format).map_err(|_| {
            let problem =
                "has a name of no known format; name the files of its folder by a pattern such as 'corpus/**/*.txt'";
            Error::input(file.display(), problem)
        })?;
        let (other, expected) = *first.get_or_insert((file, format));
        if format != expected {
            let problem = format!(
                "is of another format than '{}'; name the files of their folder by a pattern such as 'corpus/**/*.txt'",
                other.display()
            );
            return Err(Error::input(file.display(), problem));
        }
    }
    if found.is_empty() {
        return Err(Error::input(path.display(), "the folder holds no file but hidden ones; expected text"));
    }
    Ok(found)
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for path in files::list(folder)? {
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // Links to folders are not followed: they may lead back.
        match path.symlink_metadata().map_err(Error::io("read", &path))?.is_dir() {
            _ if is_hidden => {}
            true => walk(&path, found)?,
            false if path.is_dir() => {
                return Err(Error::input(path.display(), "is a link to a folder; name that folder itself"));
            }
            false => found.push(path),
        }
    }
    Ok(())
}

const STATE: &str = "state.json";
const DICTIONARY: &str = "dataset_dict.json";

/// `state.json` of a data set saved to disk.
#[derive(Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    data_files: Vec<DataFile>,
}

#[derive(Deserialize)]
struct DataFile {
    filename: PathBuf,
}

/// The shards of a data set saved to disk.
fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let path = folder.join(STATE);
    let refuse = |problem: String| Error::input(path.display(), problem);
    let state: State = serde_json::from_str(&files::read_text(&path)?)
        .map_err(|error| refuse(format!("not the state of a data set that 'datasets' saved ({error})")))?;
    if state.data_files.is_empty() {
        return Err(refuse("names no shard; the data set is empty".into()));
    }
    let shard = |file: DataFile| {
        let is_plain = matches!(file.filename.components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        let shard = folder.join(&file.filename);
        let problem = if !is_plain {
            "which is not a plain file name"
        } else if shard.extension().is_none_or(|extension| extension != "arrow") {
            "which is not an .arrow file"
        } else if !shard.is_file() {
            "which is not there"
        } else {
            return Ok(shard);
        };
        Err(refuse(format!("names the shard '{}', {problem}; save the data set again", file.filename.display())))
    };
    state.data_files.into_iter().map(shard).collect()
}

/// `dataset_dict.json` of several data sets saved to disk together.
#[derive(Deserialize)]
struct Dictionary {
    splits: Vec<String>,
}

fn refuse_dictionary(folder: &Path) -> Error {
    let path = folder.join(DICTIONARY);
    let splits = files::read_text(&path).ok().and_then(|text| serde_json::from_str::<Dictionary>(&text).ok());
    let named = splits.filter(|splits| !splits.splits.is_empty()).map_or("its subfolders".to_owned(), |splits| {
        splits
            .splits
            .iter()
            .map(|split| format!("'{}'", folder.join(split).display().to_string().escape_debug()))
            .collect::<Vec<_>>()
            .join(", ")
    });
    Error::input(folder.display(), format!("holds several data sets; name the one that is meant: {named}"))
}
