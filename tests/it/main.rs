//! All tests that can run in parallel, in one program, with one file per subject.
//!
//! ```text
//! cargo test --test it promises::    # one file
//! ```

mod support;

mod admin;
mod admin_operations;
mod app;
mod attention;
mod configuration;
mod console;
mod daemon;
mod database_files;
mod deploy;
mod dialects;
mod documents;
mod entitlements;
mod example_claims;
mod example_exec;
mod example_http;
mod example_nginx;
mod example_postgres;
mod export;
mod fixtures_live;
mod fuzz_smoke;
mod goldens;
mod hook_contract;
mod hook_exec;
mod hook_http;
mod hook_main_exec;
mod hook_main_http;
mod hook_test;
mod http_client;
mod http_server;
mod http_tls;
mod inputs;
mod instance_queues;
mod koogallery;
mod lifecycle_interleavings;
mod lifecycle_table;
mod lines;
mod logging;
mod market_api;
mod marketplace_features;
mod orphaned_hooks;
mod promises;
mod prune;
mod routing;
mod scenario;
mod schema_upgrade;
mod sealing;
mod store_conformance;
mod telemetry;
mod testing;
mod unreadable;
