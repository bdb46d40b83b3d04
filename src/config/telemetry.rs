//! `telemetry`: the collector that gets the spans.

use std::path::Path;

use super::hooks::tls;
use super::keys::secret;
use super::reader::Table;
use crate::net::Url;
use crate::serve::spans::{TelemetryHeaders, TelemetryOptions};
use spid_hook::Secret;

/// Reads the table; `None` if no collector is configured.
pub(super) fn telemetry(table: &Table<'_>) -> Option<TelemetryOptions> {
    let parse = |text: &str| text.parse::<Url>().map_err(|wrong| wrong.to_string());
    let url = table.optional("otlp", parse);
    let more = table.optional("ca_file", said);
    let service_name = table.value("service_name", "spid".to_owned(), said);
    let headers = headers(&table.table("headers"));
    // Every key is read before this return, so that none is reported as unknown.
    let url = url?;
    let tls = tls(table, &url, more.as_deref().map(Path::new));
    let options = TelemetryOptions { url, tls, headers: headers.unwrap_or_default(), service_name };
    options.check().map_err(|wrong| table.mistake("otlp", wrong)).ok()?;
    Some(options)
}

fn said(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("the value is empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn headers(table: &Table<'_>) -> Option<TelemetryHeaders> {
    let given = ["file", "env", "credential"].map(|member| table.text(member).is_some());
    if !given.contains(&true) && !table.is_there() {
        return None;
    }
    let (member, text): (_, Secret) = secret(table)?;
    TelemetryHeaders::read(&text).map_err(|wrong| table.mistake(member, wrong.to_string())).ok()
}
