//! Windows: how a document is cut for scoring, exactly as lm-evaluation-harness's rolling log-likelihood does.

/// One forward pass over part of a document: the input ids and how many of the last predictions count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Index of the document.
    pub document: usize,
    /// Input ids, at most the window length.
    pub input: Vec<u32>,
    /// Ids predicted by the last positions of the input; every token of the document occurs in exactly one window.
    pub targets: Vec<u32>,
}

/// The windows of one document.
///
/// The ids are preceded by `prefix`; every id is predicted once, in windows of `length` predictions, each with one id of
/// left context. The last, shorter window reaches back, so that its input is `length` ids long where the document
/// allows. This is `get_rolling_token_windows(context_len=1)` followed by `make_disjoint_window` of
/// lm-evaluation-harness. An empty document has no window.
///
/// # Examples
/// ```
/// let windows = mixpool::text::rolling_windows(0, &[11, 12, 13, 14, 15], 9, 3);
/// assert_eq!((windows[0].input.as_slice(), windows[0].targets.as_slice()), ([9, 11, 12].as_slice(), [11, 12, 13].as_slice()));
/// assert_eq!((windows[1].input.as_slice(), windows[1].targets.as_slice()), ([12, 13, 14].as_slice(), [14, 15].as_slice()));
/// ```
pub fn rolling_windows(document: usize, ids: &[u32], prefix: u32, length: usize) -> Vec<Window> {
    let with_prefix = |index: usize| if index == 0 { prefix } else { ids[index - 1] };
    (0..ids.len())
        .step_by(length)
        .map(|first| {
            let end = (first + length).min(ids.len());
            let start = end.saturating_sub(length);
            Window { document, input: (start..end).map(with_prefix).collect(), targets: ids[first..end].to_vec() }
        })
        .collect()
}
