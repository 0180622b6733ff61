//! The page as people use it: Chromium, a scheduler's process, and nodes with real sessions.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "page/browser.rs"]
mod browser;
#[path = "page/nodes.rs"]
mod nodes;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use browser::{Browser, browser_or_skip};
use nodes::{Node, holding};

/// Names of keys: W3C WebDriver, section 17.4.2.
const ENTER: &str = "\u{E007}";
const ESCAPE: &str = "\u{E00C}";
const LEFT: &str = "\u{E012}";
/// What a node may say of itself, and must not become part of the page.
const HOSTILE: &str = "<img src=x onerror=alert(1)><script>alert(2)</script>";

/// A scheduler's process with its page.
struct Up {
    child: Child,
    scheduler: SocketAddr,
    page: SocketAddr,
    dir: tempfile::TempDir,
}

impl Up {
    fn start() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let dir = tempfile::tempdir().unwrap();
        let (child, page, scheduler) = Self::run(dir.path(), any, any);
        Self { child, scheduler, page, dir }
    }

    /// The process, where its page is, and where nodes come to.
    fn run(dir: &Path, page: SocketAddr, scheduler: SocketAddr) -> (Child, SocketAddr, SocketAddr) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pondhawk-scheduler"));
        command.env_clear().arg("up").arg("--data-dir").arg(dir);
        command.arg("--listen").arg(scheduler.to_string()).arg("--page").arg(page.to_string());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said: Vec<String> = Vec::new();
        // In either order.
        let mut address = |words: &str| -> SocketAddr {
            while !said.iter().any(|line| line.contains(words)) {
                said.push(lines.next().unwrap_or_else(|| panic!("no {words:?}")));
            }
            let line = said.iter().find(|line| line.contains(words)).unwrap();
            line.split_once("address=").unwrap().1.split_whitespace().next().unwrap().parse().unwrap()
        };
        let (page, scheduler) = (address("page up"), address("scheduler up"));
        std::thread::spawn(move || lines.for_each(drop));
        (child, page, scheduler)
    }

    /// Kills it.
    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again at the same addresses.
    fn again(&mut self) {
        (self.child, ..) = Self::run(self.dir.path(), self.page, self.scheduler);
    }

    fn url(&self) -> String {
        format!("http://{}/", self.page)
    }

    async fn node(&self, name: &str, labels: &[(&str, &str)], holdings: Vec<pondhawk_proto::v1::Holding>) -> Node {
        Node::connect(self.dir.path(), self.scheduler, name, labels, holdings).await
    }

    /// A seed that holds many small tasks, and five nodes of which one is blamed; two download the same large task.
    async fn cluster(&self) -> Vec<Node> {
        let many = (10..80).map(|task| holding(task, 5)).collect();
        let nodes = vec![
            self.node("seed-1", &[("zone", "a"), ("rack", "r1")], many).await,
            self.node("node-1", &[("zone", "a"), ("rack", "r1")], vec![holding(2, 300)]).await,
            self.node("node-2", &[("zone", "a"), ("rack", "r2")], vec![]).await,
            self.node("node-3", &[("zone", "b"), ("note", HOSTILE)], vec![]).await,
            self.node("a-node-with-a-very-long-name.in.some.department.example", &[("zone", "b")], vec![]).await,
            self.node("node-5", &[], vec![holding(3, 12)]).await,
        ];
        nodes[1].want(1, 800, true).await;
        nodes[2].want(1, 800, true).await;
        nodes[3].want(1, 800, false).await;
        nodes[1].hold(1, 800, 0, 300, 300).await;
        nodes[2].hold(1, 800, 0, 120, 0).await;
        nodes[3].want(3, 12, false).await;
        nodes[3].blame("node-5", 3).await;
        nodes
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.end();
    }
}

fn page_token(dir: &Path) -> String {
    pondhawk_scheduler::page::token(dir, false).unwrap()
}

fn picture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}.png"))
}

fn sign_in(browser: &Browser, up: &Up) {
    browser.open(&up.url());
    browser.find("#token").write(&page_token(up.dir.path()));
    browser.find("button").click();
    browser.until("document.querySelector('#state').textContent === 'live'");
}

/// The page is no wider than the window, and has written no error.
fn sound(browser: &Browser) {
    let widths = browser.eval("[document.documentElement.scrollWidth, innerWidth]");
    assert!(widths[0].as_u64().unwrap() <= widths[1].as_u64().unwrap(), "wider than the window: {widths}");
    assert_eq!(browser.errors(), Vec::<String>::new());
}

/// Texts of the first column, from above.
fn names(browser: &Browser, table: &str) -> Vec<String> {
    let rows = browser
        .eval(&format!("[...document.querySelectorAll('#{table} tbody tr')].map(row => row.cells[0].textContent)"));
    serde_json::from_value(rows).unwrap()
}

fn has_rows(browser: &Browser, table: &str, count: usize) {
    browser.until(&format!("document.querySelectorAll('#{table} tbody tr').length === {count}"));
}

/// Takes an option as a person does: by its text.
fn choose(browser: &Browser, select: &str, option: &str) {
    browser.find(&format!("{select} option[value='{option}']")).click();
}

fn moves(nodes: &[Node]) -> impl Future<Output = ()> {
    let nodes: Vec<_> = nodes.iter().collect();
    async move {
        for step in 0..4 {
            for (at, node) in (0_u64..).zip(&nodes) {
                node.moved(20 * step * (at % 3), 35 * step * at, 60 * step * at).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        }
    }
}

#[test]
fn people_look_at_the_cluster_with_a_browser() {
    if !browser_or_skip("people_look_at_the_cluster_with_a_browser") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let profile = tempfile::tempdir().unwrap();
    let (mut up, browser) = (Up::start(), Browser::start(profile.path()));
    browser.look(1440, 900, false, false);
    only_the_token_opens_it(&browser, &up);
    an_empty_cluster_says_what_to_do(&browser);
    let nodes = runtime.block_on(up.cluster());
    has_rows(&browser, "nodes", 6);
    runtime.block_on(moves(&nodes));
    what_nodes_say_is_shown_as_text(&browser);
    nodes_are_searched_filtered_and_sorted(&browser);
    a_node_and_a_task_have_details(&browser);
    a_task_is_spread_to_seeds(&browser, &runtime, &nodes);
    tasks_are_searched_filtered_sorted_and_unfolded(&browser);
    the_chart_tells_its_values_by_keyboard(&browser);
    browser.picture(&picture("desktop"), 0);
    browser.look(1440, 900, false, true);
    browser.picture(&picture("desktop-dark"), 0);
    sound(&browser);
    let _late = a_pause_holds_the_page_still(&browser, &runtime, &up);
    a_phone_has_everything_too(&browser);
    a_scheduler_that_starts_anew_is_found_again(&browser, &mut up);
    browser.find("#logout").click();
    browser.until("document.querySelector('#token') !== null");
}

fn only_the_token_opens_it(browser: &Browser, up: &Up) {
    browser.open(&up.url());
    browser.picture(&picture("login"), 0);
    browser.find("#token").write("0123456789abcdef0123");
    browser.find("button").click();
    browser.until("document.querySelector('[role=alert]') !== null");
    // The browser itself writes that the answer was 401.
    browser.errors();
    sign_in(browser, up);
}

fn an_empty_cluster_says_what_to_do(browser: &Browser) {
    browser.until(
        "document.querySelector('#nodes-empty').textContent.includes('pondhawk up --scheduler 127.0.0.1:65100')",
    );
    browser.until("document.querySelector('#tasks-empty').textContent.includes('No tasks yet')");
    browser.picture(&picture("empty"), 0);
    sound(browser);
}

fn what_nodes_say_is_shown_as_text(browser: &Browser) {
    let labels = browser.eval("[...document.querySelectorAll('#nodes .tag')].map(tag => tag.textContent)").to_string();
    assert!(labels.contains("<img src=x onerror=alert(1)>"), "{labels}");
    assert_eq!(browser.eval("document.querySelectorAll('img').length + document.querySelectorAll('script').length"), 1);
    browser.until("document.querySelector('#tiles').textContent.includes('From the origin')");
    browser.until("/[1-9][0-9.]* (MiB|GiB)/.test(document.querySelectorAll('#tiles strong')[3].textContent)");
    browser.until("document.querySelectorAll('#tiles strong')[6].textContent === '78 %'");
    browser.until(
        "document.querySelectorAll('#map .dot').length === 6 && document.querySelectorAll('#map .link').length > 0",
    );
    sound(browser);
}

fn nodes_are_searched_filtered_and_sorted(browser: &Browser) {
    assert_eq!(names(browser, "nodes")[0], "node-5", "the one in trouble comes first");
    browser.find("#nodes-search").write("zone=B");
    has_rows(browser, "nodes", 2);
    browser.until("document.querySelector('#nodes-count').textContent === '2 of 6'");
    browser.find("#nodes-search").clear();
    browser.find("#nodes-search").write("no such node");
    browser.until("document.querySelector('#nodes-empty').textContent === 'Nothing matches.'");
    browser.find("#nodes-search").clear();
    has_rows(browser, "nodes", 6);
    for (filter, count) in [("trouble", 1), ("seed", 1), ("up", 5), ("all", 6)] {
        choose(browser, "#nodes-filter", filter);
        has_rows(browser, "nodes", count);
    }
    let by_name = browser.find("#nodes thead th:first-child button");
    by_name.click();
    browser.until("document.querySelector('#nodes thead th').getAttribute('aria-sort') === 'ascending'");
    let rising = names(browser, "nodes");
    assert!(rising.is_sorted(), "{rising:?}");
    by_name.click();
    browser.until("document.querySelector('#nodes thead th').getAttribute('aria-sort') === 'descending'");
    assert!(names(browser, "nodes").iter().rev().is_sorted());
}

fn a_node_and_a_task_have_details(browser: &Browser) {
    browser.eval("document.querySelector('#nodes .open[title=node-3]').focus()");
    browser.press(ENTER);
    browser.until("document.querySelector('#detail').open");
    browser.until("document.querySelectorAll('#detail-body tbody tr').length === 2");
    browser.until("document.querySelector('#detail-body').textContent.includes('node-1')");
    browser.window(&picture("node"));
    browser.press(ESCAPE);
    browser.until("!document.querySelector('#detail').open");
    browser.eval("document.querySelector('#map .dot').dispatchEvent(new MouseEvent('click', {bubbles: true}))");
    browser.until("document.querySelector('#detail').open");
    browser.find("#detail-close").click();
    browser.until("!document.querySelector('#detail').open");
    browser.find("#tasks .open").click();
    browser.until("document.querySelector('#detail-title').textContent === 'Task ' + '01'.repeat(32)");
    browser.until("document.querySelector('#detail-body').textContent.includes('cdn-lfs.example')");
    browser.until("document.querySelectorAll('#detail-body tbody tr').length > 0");
    browser.window(&picture("task"));
}

fn a_task_is_spread_to_seeds(browser: &Browser, runtime: &tokio::runtime::Runtime, nodes: &[Node]) {
    nodes.iter().for_each(|node| drop(node.preheats()));
    let open = format!("document.querySelector('#tasks .open[title=\"{}\"]').click()", "03".repeat(32));
    // The window of before tells that it was closed only after this one is open.
    browser.eval(&format!("(document.querySelector('#detail-close').click(), {open})"));
    browser.until("document.querySelector('#detail').open && !document.querySelector('#spread').hidden");
    browser.find("#spread-label").write("zone");
    browser.find("#spread-go").click();
    browser.until("!document.querySelector('#spread-label').checkValidity()");
    browser.find("#spread-label").clear();
    browser.find("#spread-label").write("zone=a");
    choose(browser, "#spread-scope", "seeds");
    browser.find("#spread-count").write("3");
    browser.find("#spread-pin").click();
    browser.window(&picture("spread"));
    browser.find("#spread-go").click();
    browser.until("document.querySelector('#spread-said').textContent === 'The nodes that fit are told.'");
    browser.until("document.querySelector('#detail-body').textContent.includes('whole at 0 of 1 node')");
    let told: Vec<_> = nodes.iter().map(Node::preheats).collect();
    assert_eq!(told.iter().flatten().collect::<Vec<_>>(), [&(3, true)], "{told:?}");
    assert_eq!(told[0], [(3, true)], "the seed");
    runtime.block_on(nodes[0].want(3, 12, false));
    runtime.block_on(nodes[0].hold(3, 12, 0, 12, 0));
    browser.until("!document.querySelector('#detail-body').textContent.includes('Spreads')");
    browser.until("[...document.querySelectorAll('#detail-body dd')].some(fact => fact.textContent === '2 nodes')");
    browser.find("#detail-close").click();
}

fn tasks_are_searched_filtered_sorted_and_unfolded(browser: &Browser) {
    has_rows(browser, "tasks", 50);
    browser.find("#tasks-more").click();
    has_rows(browser, "tasks", 73);
    browser.until("document.querySelector('#tasks-more').hidden");
    browser.find("#tasks-search").write("node-3");
    has_rows(browser, "tasks", 2);
    browser.find("#tasks-search").clear();
    for (filter, count) in [("wanted", 2), ("partial", 1), ("all", 50)] {
        choose(browser, "#tasks-filter", filter);
        has_rows(browser, "tasks", count);
    }
    choose(browser, "#tasks-filter", "disputed");
    browser.until("document.querySelector('#tasks-empty').textContent === 'Nothing matches.'");
    choose(browser, "#tasks-filter", "all");
    browser.find("#tasks thead th:nth-child(3) button").click();
    browser.until("document.querySelector('#tasks tbody tr').cells[2].textContent === '800 MiB'");
    browser.find("#tasks thead th:nth-child(3) button").click();
    browser.until("document.querySelector('#tasks tbody tr').cells[2].textContent === '5.0 MiB'");
    browser.find("#tasks thead th:nth-child(6) button").click();
}

fn the_chart_tells_its_values_by_keyboard(browser: &Browser) {
    for range in ["900", "60"] {
        choose(browser, "#range", range);
        browser.until(&format!("document.querySelector('#range').value === '{range}'"));
    }
    browser.until("document.querySelectorAll('#chart polygon').length === 2");
    browser.eval("document.querySelector('#chart').focus()");
    browser.press(LEFT);
    browser.until("document.querySelectorAll('#chart .cross').length === 1");
    browser.until("!document.querySelector('#legend').textContent.includes('now')");
    browser.eval("document.querySelector('#chart').blur()");
    browser.until("document.querySelectorAll('#chart .cross').length === 0");
}

/// The node that came meanwhile is seen by others, and here only when the page goes on.
fn a_pause_holds_the_page_still(browser: &Browser, runtime: &tokio::runtime::Runtime, up: &Up) -> Node {
    choose(browser, "#nodes-filter", "all");
    browser.find("#pause").click();
    browser.until("document.querySelector('#state').textContent === 'paused'");
    let late = runtime.block_on(up.node("node-6", &[("zone", "c")], vec![]));
    let seen = "fetch('/v1/cluster').then(a => a.json()).then(seen => { window.others = seen.nodes.length; })";
    browser.until(&format!("(window.others === 7) || ({seen}, false)"));
    assert_eq!(names(browser, "nodes").len(), 6);
    browser.find("#pause").click();
    has_rows(browser, "nodes", 7);
    browser.until("document.querySelector('#state').textContent === 'live'");
    late
}

fn a_phone_has_everything_too(browser: &Browser) {
    browser.look(390, 844, true, false);
    browser.eval("location.reload()");
    browser.until("document.querySelector('#state').textContent === 'live'");
    has_rows(browser, "nodes", 7);
    choose(browser, "#nodes-sort", "name 1");
    browser.until("document.querySelector('#nodes tbody tr').cells[0].textContent.startsWith('a-node')");
    choose(browser, "#tasks-sort", "bytes -1");
    browser.until("document.querySelector('#tasks tbody tr').cells[2].textContent === '800 MiB'");
    browser.picture(&picture("phone"), 0);
    browser.picture(&picture("phone-tables"), 1_330);
    browser.find("#nodes .open").click();
    browser.until("document.querySelector('#detail').open && document.querySelectorAll('#detail-body dd').length > 8");
    sound(browser);
    browser.window(&picture("phone-node"));
    browser.find("#detail-close").click();
    browser.eval("document.querySelector('#tasks .open').click()");
    browser.until("document.querySelector('#detail').open && !document.querySelector('#spread').hidden");
    browser.eval("document.querySelector('#spread-go').scrollIntoView()");
    sound(browser);
    browser.window(&picture("phone-spread"));
    browser.find("#detail-close").click();
    browser.look(390, 844, true, true);
    browser.picture(&picture("phone-dark"), 0);
    sound(browser);
}

/// The cookie outlives the process.
fn a_scheduler_that_starts_anew_is_found_again(browser: &Browser, up: &mut Up) {
    up.end();
    browser.until("document.querySelector('#state').textContent === 'no answer'");
    has_rows(browser, "nodes", 7);
    up.again();
    browser.until("document.querySelector('#state').textContent === 'live'");
    has_rows(browser, "nodes", 0);
}
