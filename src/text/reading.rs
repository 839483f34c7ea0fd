//! Reading: the options that the text of a token folder was read with, as far as they are not the usual ones.

use super::{OnBadRecord, ReadOptions, TokenType};
use serde::{Deserialize, Serialize};

/// What it takes to read the same files again to the same tokens; part of a token folder's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reading {
    /// The field of JSON records that the text came from, where it is not `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_field: Option<String>,
    /// The type of the ids in files that do not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_type: Option<TokenType>,
    /// The token that ended documents in files of ids, where it was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_token: Option<String>,
    /// What was done about bad records, where they were no errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_bad_record: Option<OnBadRecord>,
}

impl Reading {
    pub(super) fn of(options: &ReadOptions) -> Self {
        let ReadOptions { text_field, token_type, end_token, on_bad_record, .. } = options.clone();
        Self {
            text_field: (text_field != ReadOptions::default().text_field).then_some(text_field),
            token_type,
            end_token,
            on_bad_record: (on_bad_record != OnBadRecord::Fail).then_some(on_bad_record),
        }
    }

    /// The options to read with again.
    pub fn options(&self) -> ReadOptions {
        let usual = ReadOptions::default();
        let Self { text_field, token_type, end_token, on_bad_record } = self.clone();
        ReadOptions {
            text_field: text_field.unwrap_or(usual.text_field),
            token_type,
            end_token,
            on_bad_record: on_bad_record.unwrap_or_default(),
            ..usual
        }
    }

    /// The same as words of a command: each option begins with a space.
    pub fn arguments(&self) -> String {
        let word = |value: Option<serde_json::Value>| value.and_then(|value| value.as_str().map(str::to_owned));
        let quoted = |text: &Option<String>| text.as_ref().map(|text| format!("'{text}'"));
        let options = [
            ("text-field", quoted(&self.text_field)),
            ("token-dtype", word(serde_json::to_value(self.token_type).ok())),
            ("end-token", quoted(&self.end_token)),
            ("on-bad-record", word(serde_json::to_value(self.on_bad_record).ok())),
        ];
        let given = options.into_iter().filter_map(|(name, value)| Some(format!(" --{name} {}", value?)));
        given.collect()
    }
}
