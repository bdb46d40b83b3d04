//! `[[hook]]` and `[[route]]`: the hooks that provision, and the calls each of them gets.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;

use super::keys::webhook_keys;
use super::reader::{Table, unknown};
use super::{Mistake, Mistakes, Origin};
use crate::hooks::exec::{BadCommand, ExecHook};
use crate::hooks::http::{HttpHook, HttpHookOptions};
use crate::hooks::log::LogHook;
use crate::hooks::runner::{NamedHook, Route, Runner};
use crate::net::{Tls, Url};
use crate::observe::limits;
use spid_core::lifecycle::schedule::Schedule;
use spid_hook::AnyHook;

/// Name of the in-process hook, if no entry names it.
pub(super) const IN_PROCESS: &str = "in-process";

/// Key of the settings of the in-process hook, in its table.
pub const SETTINGS: &str = "in_process.settings";

/// Reader of the author's settings.
pub(super) type SettingsReader =
    Arc<dyn Fn(Spanned<DeTable<'_>>) -> Result<(), toml::de::Error> + Send + Sync>;

/// Hook of a program that embeds spid, and the reader of its settings if it has any.
#[derive(Clone)]
pub struct InProcess {
    hook: AnyHook,
    settings: Option<SettingsReader>,
}

impl From<AnyHook> for InProcess {
    fn from(hook: AnyHook) -> InProcess {
        InProcess { hook, settings: None }
    }
}

impl InProcess {
    /// Creates a hook whose settings are read by `read`.
    pub fn with_settings(
        hook: AnyHook,
        read: impl Fn(Spanned<DeTable<'_>>) -> Result<(), toml::de::Error> + Send + Sync + 'static,
    ) -> InProcess {
        InProcess { hook, settings: Some(Arc::new(read)) }
    }

    /// Returns the hook for a command without a configuration. Its settings are read from an empty table.
    ///
    /// # Errors
    /// The hook needs settings.
    pub fn without_configuration(&self) -> Result<AnyHook, Mistakes> {
        let Some(text) = self.fault_of_no_settings() else { return Ok(self.hook.clone()) };
        let mistake = Mistake { key: "hook".to_owned(), origin: Origin::File { line: None }, text };
        Err(Mistakes { source: "no configuration".to_owned(), mistakes: vec![mistake] })
    }

    /// Reads the settings from an empty table, and returns the reason why that is not enough.
    fn fault_of_no_settings(&self) -> Option<String> {
        let read = self.settings.as_ref()?;
        let error = read(Spanned::new(0..0, DeTable::new())).err()?;
        Some(format!(
            "the hook of this program needs settings ({}); add a [[hook]] with `in_process = {{ settings = {{ … }} }}`",
            error.message()
        ))
    }
}

/// Reads the hooks and routes. `in_process` is the hook of a program that embeds spid; it is the first and default
/// hook, unless an entry with `in_process` gives it another position.
pub(super) fn runner(root: &Table<'_>, in_process: Option<InProcess>, endpoints: &[&str]) -> Option<Runner> {
    let tables = root.tables("hook", false);
    if in_process.is_none() && root.lacks("hook") {
        root.mistake(
            "hook",
            "no hook is configured: add a [[hook]] with a name and `exec = { command = […] }`, `http = { url = \"…\", secret = … }` or `log = {}`",
        );
    }
    let (mut names, mut hooks, mut inside) = (Vec::new(), Vec::new(), in_process);
    // No entry places the in-process hook, so it comes first and is the default one.
    if tables.iter().all(|table| table.lacks("in_process")) {
        if let Some(inside) = inside.take() {
            if let Some(fault) = inside.fault_of_no_settings() {
                root.mistake("hook", fault);
            }
            hooks.push(NamedHook::new(IN_PROCESS, inside.hook));
        }
        names.extend(hooks.iter().map(|_| IN_PROCESS.to_owned()));
    }
    for table in tables {
        // Continue without a name, so that all mistakes of the hook are reported.
        let name = table.required("name").unwrap_or_default();
        if !name.is_empty() && names.contains(&name) {
            table.mistake("name", format!("`{name}` is the name of an earlier hook"));
        }
        hooks.extend(hook(&table, &name, &mut inside));
        names.push(name);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // Collect before checking, so that the mistakes of all routes are reported.
    let routes: Vec<Option<Route>> =
        root.tables("route", false).iter().map(|table| checked_route(table, &names, endpoints)).collect();
    // A hook with a mistake is missing in the list. The mistake is reported already, so do not build a runner.
    let complete = hooks.len() == names.len();
    let routes = routes.into_iter().collect::<Option<Vec<Route>>>()?;
    if !complete || hooks.is_empty() {
        return None;
    }
    let wrong = |wrong: Vec<_>| wrong.iter().for_each(|wrong| root.mistake("hook", format!("{wrong}")));
    Runner::new(hooks, routes).map_err(wrong).ok()
}

/// Reads a route without checking its names.
pub(super) fn route(table: &Table<'_>) -> Route {
    let (endpoint, product) = (table.text("endpoint"), table.text("product"));
    let (sku, buyer) = (table.text("sku"), table.text("buyer"));
    Route { endpoint, product, sku, buyer, hook: table.required("hook").unwrap_or_default() }
}

fn checked_route(table: &Table<'_>, hooks: &[&str], endpoints: &[&str]) -> Option<Route> {
    let route = route(table);
    let hook = &route.hook;
    if !hook.is_empty() && !hooks.contains(&hook.as_str()) {
        table.mistake("hook", format!("there is no hook `{hook}`; {}", unknown(hook, hooks)));
    }
    if let Some(name) = route.endpoint.as_deref().filter(|name| !endpoints.contains(name)) {
        table.mistake("endpoint", format!("there is no endpoint `{name}`; {}", unknown(name, endpoints)));
    }
    hooks.contains(&hook.as_str()).then_some(route)
}

fn hook(table: &Table<'_>, name: &str, inside: &mut Option<InProcess>) -> Option<NamedHook> {
    // Only a program with a hook inside suggests this key for an unknown one.
    let is_inside = if inside.is_some() { table.has("in_process") } else { !table.lacks("in_process") };
    match (table.has("exec"), table.has("http"), table.has("log"), is_inside) {
        (true, false, false, false) => Some(exec(&table.table("exec"), name)),
        (false, true, false, false) => http(&table.table("http"), name),
        (false, false, true, false) => {
            // The log hook has no keys; the opened table reports any that are there.
            table.table("log");
            Some(NamedHook::new(name, AnyHook::from(LogHook)))
        }
        (false, false, false, true) => in_process(table, name, inside.take()),
        _ => {
            table.mistake("", "a hook has exactly one of `exec`, `http`, `log` and `in_process`");
            None
        }
    }
}

fn in_process(table: &Table<'_>, name: &str, hook: Option<InProcess>) -> Option<NamedHook> {
    let own = table.table("in_process");
    let bounds = Bounds::of(&own);
    if let Some(read) = hook.as_ref().and_then(|hook| hook.settings.as_ref()) {
        own.foreign("settings", read.as_ref());
    }
    if hook.is_none() {
        table.mistake(
            "in_process",
            "this program has no in-process hook, or an earlier [[hook]] uses it already",
        );
    }
    Some(bounds.around(NamedHook::new(name, hook?.hook)))
}

/// Limits that all kinds of hooks have, except the log hook: timeout, concurrency and retry schedule.
struct Bounds {
    timeout: Duration,
    concurrency: usize,
    /// Retry schedule of the hook; `None` for the default one.
    retry: Option<Schedule>,
}

impl Bounds {
    fn of(table: &Table<'_>) -> Bounds {
        Bounds {
            timeout: table.duration("timeout", Duration::from_millis(limits::HOOK_TIMEOUT_MS)),
            concurrency: concurrency(table),
            retry: retry(table),
        }
    }

    fn around(self, hook: NamedHook) -> NamedHook {
        let hook = hook.timeout(self.timeout).concurrency(self.concurrency);
        match self.retry {
            Some(schedule) => hook.retry(schedule),
            None => hook,
        }
    }
}

fn concurrency(table: &Table<'_>) -> usize {
    let (wanted, most) =
        (table.count("concurrency", limits::HOOK_CONCURRENCY_COUNT), limits::JOBS_RUNNING_MAX_COUNT);
    if wanted > most {
        table.warning(format!(
            "concurrency is {wanted}, but {most} calls run at once over all hooks, of which one is reserved for each other hook; write {most} or less"
        ));
    }
    wanted
}

fn retry(table: &Table<'_>) -> Option<Schedule> {
    let most = limits::RETRY_LIST_MAX_COUNT;
    let (shortest, longest) = (limits::RETRY_LIST_WAIT_MIN_S, limits::RETRY_LIST_WAIT_MAX_S);
    let fault = |wait: Duration| {
        let fits = wait >= Duration::from_secs(shortest) && wait <= Duration::from_secs(longest);
        (!fits).then(|| format!("is not between {shortest} s and {} h", longest / 3600))
    };
    let waits = table.durations("retry", &limits::RETRY_SCHEDULE_S.map(Duration::from_secs), fault);
    if !table.has("retry") {
        return None;
    }
    if waits.len() > most || table.lacks("retry") {
        table.mistake(
            "retry",
            format!("give 1 to {most} waits; after one more failure than waits the job is dead"),
        );
    }
    let millis = |wait: &Duration| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    Some(Schedule::from_millis(waits.iter().map(millis).collect()))
}

fn exec(table: &Table<'_>, name: &str) -> NamedHook {
    let command = table.texts("command");
    let is_given = command.is_some() || !table.has("command");
    let mut hook = ExecHook::new(command.unwrap_or_default());
    if let Some(folder) = table.text("working_dir") {
        hook = hook.working_dir(folder);
    }
    for (name, value) in table.settings("env", fault_of_variable) {
        hook = hook.setting(name, value);
    }
    match hook.check() {
        Ok(()) => {}
        Err(wrong @ BadCommand::NoFolder(_)) => table.mistake("working_dir", wrong.to_string()),
        Err(wrong) if is_given => table.mistake("command", wrong.to_string()),
        // A command of the wrong type is reported already; an empty command would be a second mistake about it.
        Err(_) => {}
    }
    Bounds::of(table).around(NamedHook::exec(name, hook))
}

/// Returns the reason why a hook cannot get a setting under this name.
fn fault_of_variable(name: &str) -> Option<&'static str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !name.chars().all(is_plain) || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Some("the name of a variable has letters, digits and `_`");
    }
    (name.starts_with("SPID_") || name == "TRACEPARENT")
        .then_some("spid sets this variable itself; use another name")
}

fn http(table: &Table<'_>, name: &str) -> Option<NamedHook> {
    let keys = webhook_keys(table);
    let bounds = Bounds::of(table);
    let insecure = table.flag("insecure");
    let more = table.text("ca_file");
    let url = table.required("url").filter(|url| !url.is_empty())?;
    let url = url.parse::<Url>().map_err(|wrong| table.mistake("url", wrong.to_string())).ok()?;
    let tls = tls(table, &url, more.as_deref().map(Path::new));
    // Keep as many connections open as calls can run at once.
    let options = HttpHookOptions { tls, insecure, keep: bounds.concurrency, ..HttpHookOptions::default() };
    let hook = HttpHook::new(url, keys?, options);
    if let Err(wrong) = hook.check() {
        table.mistake("url", wrong.to_string());
    }
    Some(bounds.around(NamedHook::new(name, AnyHook::from(hook))))
}

/// TLS configuration of a client, with additional trusted certificates. The files are read here, so that a missing
/// file is an error of the configuration.
pub(super) fn tls(table: &Table<'_>, url: &Url, more: Option<&Path>) -> Option<Tls> {
    if !url.is_secure() {
        // The file would have no effect, so the configuration is probably wrong.
        if more.is_some() {
            table.mistake("ca_file", "`ca_file` has no effect: the URL is http, not https");
        }
        return None;
    }
    Tls::new(more).map_err(|wrong| table.mistake("ca_file", wrong.to_string())).ok()
}
