//! A real browser, controlled over its DevTools protocol through a pipe (`--remote-debugging-pipe` on file
//! descriptors 3 and 4). So there is no port and no library: messages are JSON, and each ends with a zero byte.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

/// Maximum wait for an event that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page.
pub(crate) struct Chromium {
    child: Child,
    input: ChildStdin,
    heard: Receiver<Value>,
    events: Vec<Value>,
    session: Option<String>,
    asked: u64,
    _profile: tempfile::TempDir,
}

impl Chromium {
    pub(crate) fn start() -> Chromium {
        let profile = tempfile::tempdir().unwrap();
        let flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars --remote-debugging-pipe";
        let script = format!("exec chromium {flags} --user-data-dir=\"$1\" 3<&0 4>&1 </dev/null >/dev/null");
        let mut child = Command::new("sh")
            .args(["-c", &script, "sh", profile.path().to_str().unwrap()])
            .env("HOME", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (said, heard) = channel();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while output.read_until(0, &mut message).is_ok_and(|read| read > 0) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else { return };
                if said.send(value).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let input = child.stdin.take().unwrap();
        let (events, session) = (Vec::new(), None);
        let mut browser = Chromium { child, input, heard, events, session, asked: 0, _profile: profile };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attached = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", &attached)["sessionId"].clone();
        browser.session = Some(session.as_str().unwrap().to_owned());
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, &json!({}));
        }
        browser
    }

    /// Sends a command to the browser.
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        self.asked += 1;
        let mut message = json!({"id": self.asked, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let value = self.next();
            if value["id"] == self.asked {
                assert!(value["error"].is_null(), "{method}: {value}");
                return value["result"].clone();
            }
            self.events.push(value);
        }
    }

    fn next(&mut self) -> Value {
        self.heard.recv_timeout(PATIENCE).unwrap()
    }

    /// Number of events of this kind so far.
    pub(crate) fn count(&self, event: &str) -> usize {
        self.events.iter().filter(|value| value["method"] == event).count()
    }

    /// Errors of a page, above all violations of its content policy.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let logged = self.events.iter().filter(|value| value["method"] == "Log.entryAdded");
        logged.map(|value| value["params"]["entry"]["text"].to_string()).collect()
    }

    /// Does an action that leads to a page, and waits for the page.
    fn loading(&mut self, work: impl FnOnce(&mut Chromium)) {
        let before = self.count("Page.loadEventFired");
        work(self);
        while self.count("Page.loadEventFired") == before {
            let value = self.next();
            self.events.push(value);
        }
    }

    pub(crate) fn open(&mut self, url: &str) {
        self.loading(|browser| {
            let answer = browser.call("Page.navigate", &json!({"url": url}));
            assert!(answer["errorText"].is_null(), "{url}: {answer}");
        });
    }

    /// Result of a script of the test.
    pub(crate) fn evaluate(&mut self, script: &str) -> Value {
        let params = json!({"expression": script, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", &params);
        assert!(answer["exceptionDetails"].is_null(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Visible text of the page.
    pub(crate) fn text(&mut self) -> String {
        self.evaluate("document.body.innerText").as_str().unwrap().to_owned()
    }

    /// Clicks the first visible element with this selector and this text.
    pub(crate) fn click(&mut self, selector: &str, text: &str) {
        let script = format!(
            "(() => {{ const found = [...document.querySelectorAll({})].find(it => it.textContent.includes({}) && it.getClientRects().length); if (!found) return null; found.scrollIntoView({{block: 'center'}}); const at = found.getBoundingClientRect(); return [at.x + at.width / 2, at.y + at.height / 2]; }})()",
            json!(selector),
            json!(text)
        );
        let place = self.evaluate(&script);
        assert!(place.is_array(), "nothing to click: {selector} with `{text}` in:\n{}", self.text());
        for kind in ["mousePressed", "mouseReleased"] {
            let params =
                json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", &params);
        }
    }

    /// Clicks an element that leads to another page.
    pub(crate) fn follow(&mut self, selector: &str, text: &str) {
        self.loading(|browser| browser.click(selector, text));
    }

    /// Types into the field with this selector.
    pub(crate) fn write(&mut self, selector: &str, text: &str) {
        self.click(selector, "");
        self.call("Input.insertText", &json!({"text": text}));
    }

    /// Sets width and height of the screen, and light or dark mode.
    pub(crate) fn look_at(&mut self, width: u32, height: u32, scheme: &str) {
        let screen = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", &screen);
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &media);
    }

    /// Takes a screenshot of the page, as base64.
    pub(crate) fn picture(&mut self) -> String {
        let picture = self.call("Page.captureScreenshot", &json!({"format": "png"}));
        picture["data"].as_str().unwrap().to_owned()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
