//! Chromium by the WebDriver protocol: JSON over HTTP to chromedriver.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

/// With this variable set to 1 a test that cannot run here fails, rather than being left out.
const REQUIRE_ALL: &str = "PONDHAWK_TEST_REQUIRE_ALL";
/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
/// The member of an object that names an element: W3C WebDriver, section 12.2.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window; ends when dropped.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

/// Something on the page.
pub(crate) struct Element<'a> {
    browser: &'a Browser,
    id: String,
}

/// Whether there is a browser; says so if not.
///
/// # Panics
/// If there is none and PONDHAWK_TEST_REQUIRE_ALL is 1.
pub(crate) fn browser_or_skip(test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let missing: Vec<&str> = ["chromium", "chromedriver"].into_iter().filter(|name| !found(name)).collect();
    if missing.is_empty() {
        return true;
    }
    let required = std::env::var(REQUIRE_ALL).is_ok_and(|value| value == "1");
    assert!(!required, "{test}, which {REQUIRE_ALL}=1 forbids to leave out: no {}", missing.join(", no "));
    eprintln!("left out: {test}: no {} (`cargo xtask setup` installs them)", missing.join(", no "));
    false
}

impl Browser {
    /// A headless one whose profile is below `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains("started successfully on port")).expect("chromedriver starts");
        let port = line.trim_end_matches('.').rsplit(' ').next().unwrap().parse().unwrap();
        // Whatever else it says is read, or it would block.
        std::thread::spawn(move || lines.for_each(drop));
        let mut browser = Self { driver, port, session: String::new() };
        let profile = format!("--user-data-dir={}", dir.join("profile").display());
        // Root has no sandbox of its own; containers have a small /dev/shm.
        let arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", &profile];
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": 30_000, "pageLoad": 30_000},
        }}});
        let opened = browser.send("POST", "/session", &capabilities);
        browser.session = opened["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    pub(crate) fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// Width and height in CSS pixels, as on a phone or not, light or dark.
    pub(crate) fn look(&self, width: u32, height: u32, phone: bool, dark: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.cdp("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.cdp("Emulation.setEmulatedMedia", &media);
    }

    /// What an expression of JavaScript gives.
    pub(crate) fn eval(&self, expression: &str) -> Value {
        self.post("/execute/sync", &json!({"script": format!("return ({expression});"), "args": []}))
    }

    /// Waits until an expression is true.
    ///
    /// # Panics
    /// If it does not become true within half a minute.
    pub(crate) fn until(&self, expression: &str) {
        let script = format!(
            "const done = arguments[0];\
             const look = () => {{ let is = false; try {{ is = {expression}; }} catch {{}} is ? done(true) : setTimeout(look, 40); }};\
             look();"
        );
        let began = Instant::now();
        loop {
            let answer = self.request("POST", "/execute/async", &json!({"script": script, "args": []}));
            if answer == json!(true) {
                return;
            }
            // A script ends with its document, when another one is loaded.
            let why = answer["message"].as_str().unwrap_or_default();
            if began.elapsed() >= LONG / 2 {
                let shown = self.eval("(document.querySelector('dialog[open]') || document.body).innerText");
                panic!("never came true: {expression}: {why}\nerrors: {:?}\nshown: {shown}", self.errors());
            }
        }
    }

    /// The first element that a selector of CSS finds.
    pub(crate) fn find(&self, css: &str) -> Element<'_> {
        let found = self.post("/element", &json!({"using": "css selector", "value": css}));
        let id = found[ELEMENT].as_str().unwrap_or_else(|| panic!("no {css}: {found}")).to_owned();
        Element { browser: self, id }
    }

    /// Keys to whatever has the focus.
    pub(crate) fn press(&self, key: &str) {
        let actions = [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        self.post("/actions", &json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]}));
    }

    /// What the page has written to the console as an error since the last call.
    pub(crate) fn errors(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({"type": "browser"}));
        let lines = log.as_array().expect("a list").iter().filter(|line| line["level"] == "SEVERE");
        lines.map(|line| line["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// A picture of the page from `top` on.
    pub(crate) fn picture(&self, path: &Path, top: u32) {
        let clip = json!({"x": 0, "y": top, "width": self.eval("innerWidth"), "height": 1_400, "scale": 1});
        self.capture(path, &json!({"format": "png", "captureBeyondViewport": true, "clip": clip}));
    }

    /// A picture of what the window shows.
    pub(crate) fn window(&self, path: &Path) {
        self.capture(path, &json!({"format": "png"}));
    }

    fn capture(&self, path: &Path, what: &Value) {
        let taken = self.cdp("Page.captureScreenshot", what);
        std::fs::write(path, STANDARD.decode(taken["data"].as_str().expect("base64")).unwrap()).unwrap();
    }

    fn cdp(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let answer = self.request("POST", path, body);
        assert!(answer.get("error").is_none(), "{path} {body}: {answer}");
        answer
    }

    fn request(&self, method: &str, path: &str, body: &Value) -> Value {
        self.send(method, &format!("/session/{}{path}", self.session), body)
    }

    /// One request on a connection of its own; gives the answer's `value`.
    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        let body = body.to_string();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\ncontent-type: application/json", self.port);
        write!(socket, "{head}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        let mut answer = BufReader::new(socket);
        let mut length = 0;
        loop {
            let mut line = String::new();
            answer.read_line(&mut line).unwrap();
            match line.trim_end().to_ascii_lowercase().split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().unwrap(),
                _ if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body).unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["value"].take()
    }
}

impl Element<'_> {
    pub(crate) fn click(&self) {
        self.browser.post(&format!("/element/{}/click", self.id), &json!({}));
    }

    pub(crate) fn write(&self, text: &str) {
        self.browser.post(&format!("/element/{}/value", self.id), &json!({ "text": text }));
    }

    pub(crate) fn clear(&self) {
        self.browser.post(&format!("/element/{}/clear", self.id), &json!({}));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.session.is_empty() {
            self.request("DELETE", "", &json!({}));
        } else if let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.port)) {
            // The browser is to end, and why the test fails is not to be hidden.
            let path = format!("/session/{}", self.session);
            let _ = write!(socket, "DELETE {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\n\r\n", self.port);
            let _ = socket.read(&mut [0; 1]);
        }
        // Also a browser whose session was never known here.
        let _ = kill_process_group(Pid::from_child(&self.driver), Signal::KILL);
        let _ = self.driver.wait();
    }
}
