//! Configuration of the public listener: TLS, trusted proxies and allowed networks.

use std::path::PathBuf;

use super::keys::credential_file;
use super::reader::Table;
use crate::net::ServerTls;
use crate::serve::public::{Network, Proxies, ProxyHeader};

/// Reads `server.tls`: the certificate and its key are loaded now, so that a mistake in them is reported now.
pub(super) fn tls(server: &Table<'_>) -> Option<ServerTls> {
    let tls = server.table("tls");
    let places = (place(&tls.table("certificate")), place(&tls.table("key")));
    let lacks = |member: &str| {
        let text =
            format!("the {member} is missing: give one as {{ file = \"…\" }} or {{ credential = \"…\" }}");
        server.mistake("tls", text);
        None
    };
    match places {
        (Place::At(certificate), Place::At(key)) => {
            let loaded = ServerTls::load(&certificate, &key);
            loaded.map_err(|error| server.mistake("tls", error.to_string())).ok()
        }
        (Place::Nowhere, Place::At(_)) => lacks("certificate"),
        (Place::At(_), Place::Nowhere) => lacks("key"),
        // An empty table: without this line spid would silently serve plain HTTP.
        (Place::Nowhere, Place::Nowhere) if server.has("tls") => lacks("certificate and its key"),
        _ => None,
    }
}

/// Location of a file.
enum Place {
    /// The table is missing or empty.
    Nowhere,
    /// The table has a mistake, which is reported.
    Wrong,
    At(PathBuf),
}

fn place(table: &Table<'_>) -> Place {
    let (member, found) = match (table.text("file"), table.text("credential")) {
        (None, None) => return Place::Nowhere,
        (Some(path), None) if path.is_empty() => ("file", Err("the path is empty".to_owned())),
        (Some(path), None) => ("file", Ok(PathBuf::from(path))),
        (None, Some(name)) => ("credential", credential_file(table.reader().environment(), &name)),
        (Some(_), Some(_)) => ("", Err("give either `file` or `credential`, not both".to_owned())),
    };
    match found {
        Ok(path) => Place::At(path),
        Err(wrong) => {
            table.mistake(member, wrong);
            Place::Wrong
        }
    }
}

/// Reads `server.trusted_proxies` and `server.proxy_header`.
pub(super) fn proxies(server: &Table<'_>) -> Proxies {
    let trusted = networks(server, "trusted_proxies").unwrap_or_default();
    // Every caller could then set the header and pretend to have any address.
    if trusted.iter().any(Network::is_everything) {
        server.mistake(
            "trusted_proxies",
            "one network contains every address, so every caller could forge its address; list only the networks of your proxies",
        );
    }
    let words = ProxyHeader::ALL.map(|header| (header.as_str(), header));
    Proxies { trusted, header: server.choice("proxy_header", ProxyHeader::default(), &words) }
}

/// Reads `allow` of an endpoint; `None` if every address may call.
pub(super) fn allow(endpoint: &Table<'_>) -> Option<Vec<Network>> {
    let networks = networks(endpoint, "allow");
    // An empty list is probably a mistake: it would deny every call.
    if endpoint.has("allow") && endpoint.lacks("allow") {
        endpoint
            .mistake("allow", "the list is empty, so every call is denied; remove it to allow all networks");
    }
    networks
}

fn networks(table: &Table<'_>, key: &'static str) -> Option<Vec<Network>> {
    let mut networks = Vec::new();
    for text in table.texts(key)? {
        match text.parse::<Network>() {
            Ok(network) => networks.push(network),
            Err(wrong) => table.mistake(key, wrong.to_string()),
        }
    }
    Some(networks)
}
