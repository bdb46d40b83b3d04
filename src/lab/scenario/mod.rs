//! Scenarios: callbacks as files, sent to any URL and compared with the expected answers.
//!
//! A test cannot make a marketplace press "buy", but it can run a scenario. One TOML file contains the requests of a
//! marketplace and the expected answers; spid signs each request when it sends it. The same files serve three purposes:
//! the tests of this project, an operator's first check of a new deployment, and a simulated marketplace for the author
//! of a hook. The format is described in `docs/fixtures.md`.
//!
//! * [`Scenario::parse`] reads a file and reports all its mistakes together, each with its line;
//! * [`Scenario::set`] overrides a value, and fails if there is no such value;
//! * [`Scenario::run`] sends the steps to a [`Target`] and returns a [`Report`]. An [`Observer`] watches the run;
//!   [`States`] gives access to the store.

mod expect;
pub mod export;
mod file;
mod run;
mod value;

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use spid_core::dialect::{Dialect, SendForm, SendSignature};
use spid_core::document::did_you_mean;

pub use expect::{Failure, Seen};
pub use run::{Answered, Observer, Report, Sent, States, StepReport, Target};

use expect::Expectation;
use value::{Template, Value};

/// The JSON Schema of the format, for editors.
pub const SCHEMA: &str = include_str!("../../../docs/scenario.schema.json");

/// A sequence of callbacks and the expected result of each.
///
/// ```
/// let text = r#"
///     version = 1
///     title = "A payment is acknowledged"
///     dialect = "alibaba"
///     source = "help.aliyun.com/zh/marketplace/orderpay"
///
///     [vars]
///     order = { unique = "order" }
///
///     [[step]]
///     name = "pay"
///     action = "orderPay"
///     params = { requestId = "${order}-paid", orderId = "${order}" }
///     expect = { json = { success = true } }
/// "#;
/// let mut scenario = spid::internals::lab::scenario::Scenario::parse(text, "pay.toml").unwrap();
/// scenario.set("vars.order", "order-7").unwrap();
/// assert!(scenario.set("vars.ordre", "order-7").unwrap_err().to_string().contains("vars.order"));
/// ```
#[derive(Clone)]
pub struct Scenario {
    title: String,
    source: String,
    dialect: &'static dyn Dialect,
    timezone: TimeZone,
    vars: Vec<(String, Value)>,
    steps: Vec<Arc<Step>>,
}

/// A callback, delivered once or several times.
#[derive(Debug, Clone)]
struct Step {
    name: String,
    /// Action, as the marketplace spells it.
    action: String,
    params: Vec<(String, Value)>,
    /// Recorded request, which is sent byte for byte instead.
    request: Option<Vec<u8>>,
    /// Name of the endpoint, if it is not the default one.
    endpoint: Option<String>,
    /// Name of the signing key, if it is not the default one.
    key: Option<String>,
    form: SendForm,
    signature: SendSignature,
    /// Offset of the request's date from now, in milliseconds.
    dated_ms: i64,
    altered: Vec<(String, Template)>,
    duplicated: Vec<(String, Template)>,
    raw: String,
    /// Pause before the step.
    wait: Duration,
    /// Number of deliveries.
    repeat: u32,
    /// Number of concurrent deliveries.
    concurrent: u32,
    retry: Retry,
    expect: Expectation,
    /// Names to capture, each with the path of its value in the JSON of the answer.
    capture: Vec<(String, String)>,
    /// Names that must have a value before the step is sent or judged.
    needs: BTreeSet<String>,
}

/// Limit and interval of the retries of one delivery, until its answer is as expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Retry {
    every: Duration,
    limit: u32,
}

/// A mistake in the file of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line number, from 1.
    pub line: usize,
    /// Description of the mistake, with the probable intention where it is easy to guess.
    pub message: String,
}

/// Errors of reading a scenario file.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("{}: {cause}{}", path.display(), hint_for_a_folder(path))]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        cause: std::io::Error,
    },
    /// The file is not a valid scenario. `Display` writes a line for every mistake.
    #[error("{}", listed(file, mistakes))]
    Mistakes {
        /// Name of the file, as it was given.
        file: String,
        /// All mistakes, sorted by line.
        mistakes: Vec<Mistake>,
    },
}

fn hint_for_a_folder(path: &Path) -> String {
    match path.is_dir() {
        true => format!("; name the fixtures in it: {}/*.toml", path.display()),
        false => String::new(),
    }
}

fn listed(file: &str, mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|it| format!("{file}:{}: {}", it.line, it.message)).collect::<Vec<_>>().join("\n")
}

/// Error: an override without a value to override.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no value is called `{name}`{}; known names: {}", did_you_mean(name, known.iter().map(String::as_str)), known.join(", "))]
pub struct NoMatch {
    /// The name that was given.
    pub name: String,
    /// The names that exist.
    pub known: Vec<String>,
}

impl Scenario {
    /// Parses a scenario. `file_name` is printed before the line of every mistake. Files that it names are read from its
    /// folder.
    ///
    /// # Errors
    /// [`ScenarioError::Mistakes`], with all mistakes together.
    pub fn parse(text: &str, file_name: &str) -> Result<Scenario, ScenarioError> {
        let folder = Path::new(file_name).parent();
        file::read(text, folder)
            .map_err(|mistakes| ScenarioError::Mistakes { file: file_name.to_owned(), mistakes })
    }

    /// Reads a scenario from a file.
    ///
    /// # Errors
    /// [`ScenarioError`].
    pub fn load(path: &Path) -> Result<Scenario, ScenarioError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ScenarioError::Unreadable { path: path.to_owned(), cause })?;
        Scenario::parse(&text, &path.display().to_string())
    }

    /// Title of the scenario, in one sentence.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The vendor's page that the scenario follows.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Dialect of the scenario.
    pub fn dialect(&self) -> &'static dyn Dialect {
        self.dialect
    }

    /// Names of the steps, in order.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = &str> {
        self.steps.iter().map(|step| step.name.as_str())
    }

    /// Number of deliveries if every answer is as expected at once.
    pub fn deliveries(&self) -> u64 {
        self.steps.iter().map(|step| u64::from(step.repeat)).sum()
    }

    /// Names of the endpoints in the steps, besides the default one.
    pub fn endpoints(&self) -> BTreeSet<&str> {
        self.steps.iter().filter_map(|step| step.endpoint.as_deref()).collect()
    }

    /// Names of the keys in the steps, besides the default one.
    pub fn keys(&self) -> BTreeSet<&str> {
        self.steps.iter().filter_map(|step| step.key.as_deref()).collect()
    }

    /// Overrides a value: `vars.NAME`, `params.NAME` (in every step that has it) or `STEP.params.NAME`. The new value
    /// is literal: no `${}` in it is replaced.
    ///
    /// # Errors
    /// [`NoMatch`] if there is no such value: an override without effect is a mistake.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), NoMatch> {
        let known = self.names();
        let matched = known.iter().any(|known| known == name);
        if !matched {
            return Err(NoMatch { name: name.to_owned(), known });
        }
        let new = Value::Text(Template::literal(value));
        for (var, old) in &mut self.vars {
            if format!("vars.{var}") == name {
                *old = new.clone();
            }
        }
        for step in self.steps.iter_mut().map(Arc::make_mut) {
            for (param, old) in &mut step.params {
                // A step name may contain dots, so compare whole names instead of splitting them.
                if format!("params.{param}") == name || format!("{}.params.{param}", step.name) == name {
                    *old = new.clone();
                }
            }
        }
        Ok(())
    }

    /// All names that [`Scenario::set`] accepts, each once, in the order of the file.
    fn names(&self) -> Vec<String> {
        let vars = self.vars.iter().map(|(name, _)| format!("vars.{name}"));
        let params = self.steps.iter().flat_map(|step| {
            let names = step.params.iter().map(|(param, _)| param);
            names.flat_map(|param| [format!("params.{param}"), format!("{}.params.{param}", step.name)])
        });
        let mut seen = HashSet::new();
        vars.chain(params).filter(|name| seen.insert(name.clone())).collect()
    }
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scenario")
            .field("title", &self.title)
            .field("dialect", &self.dialect.name())
            .field("steps", &self.steps.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario() -> Scenario {
        let text = r#"
            version = 1
            title = "t"
            dialect = "alibaba"
            source = "s"
            vars = { order = { unique = "o" } }
            step = [
                { name = "buy", action = "createInstance", params = { orderBizId = "${order}", skuId = "a" } },
                { name = "buy.again", action = "createInstance", params = { skuId = "a" }, repeat = 3 },
            ]
        "#;
        Scenario::parse(text, "t.toml").unwrap()
    }

    fn text_of(value: &Value) -> String {
        match value {
            Value::Text(template) => template.fill(&value::Variables::new()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_override_reaches_one_step_or_all_that_have_the_name() {
        let mut scenario = scenario();
        scenario.set("params.skuId", "b").unwrap();
        assert_eq!(text_of(&scenario.steps[0].params[1].1), "b");
        assert_eq!(text_of(&scenario.steps[1].params[0].1), "b");
        scenario.set("buy.again.params.skuId", "${order}").unwrap();
        assert_eq!(text_of(&scenario.steps[0].params[1].1), "b");
        assert_eq!(text_of(&scenario.steps[1].params[0].1), "${order}", "an override means itself");
        scenario.set("vars.order", "o-7").unwrap();
        assert_eq!(text_of(&scenario.vars[0].1), "o-7");
    }

    #[test]
    fn an_override_of_nothing_names_what_there_is() {
        let error = scenario().set("buy.params.skuid", "b").unwrap_err();
        let said = error.to_string();
        assert!(said.contains("did you mean `buy.params.skuId`?"), "{said}");
        for name in ["vars.order", "params.orderBizId", "params.skuId", "buy.again.params.skuId"] {
            assert!(error.known.iter().any(|known| known == name), "{name} in {said}");
        }
        assert_eq!(error.known.iter().filter(|name| *name == "params.skuId").count(), 1);
    }

    #[test]
    fn a_scenario_says_what_it_is() {
        let scenario = scenario();
        assert_eq!((scenario.title(), scenario.source(), scenario.dialect().name()), ("t", "s", "alibaba"));
        assert_eq!(scenario.steps().collect::<Vec<_>>(), ["buy", "buy.again"]);
        assert_eq!(scenario.deliveries(), 4);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Scenario::load(Path::new("/nowhere/at-all.toml")).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/at-all.toml: "), "{error}");
    }
}
