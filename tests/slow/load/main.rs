//! Daemons under load: floods, many connections, restarts and reloads while orders arrive.

#[allow(dead_code, unused_imports, unused_macros, reason = "each program uses a part of it")]
#[path = "../../it/support/mod.rs"]
mod support;

mod fairness;
mod front;
mod hostile_peers;
mod reload;
mod supervised;
