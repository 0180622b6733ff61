//! Outcomes as one self-contained page.

use super::{
    Machine, Outcome,
    table::{TITLES, columns},
};
use crate::chart::{self, escape};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:var(--ink,#222);\
background:var(--ground,#fff)}\
table{border-collapse:collapse;margin:.8em 0}td,th{padding:.25em .8em;border-bottom:1px solid var(--grid,#ddd);text-align:right}\
td:first-child,th:first-child,td:last-child,th:last-child{text-align:left}.NO{color:#b00020;font-weight:600}\
.yes{color:#1b6e20;font-weight:600}.facts td{border:0;padding:.1em .8em .1em 0;text-align:left}\
.note{color:var(--faint,#555)}";

/// The page: the machine, then each scenario with its chart and table.
pub fn page(machine: &Machine, outcomes: &[Outcome]) -> String {
    let facts: String = machine
        .facts
        .iter()
        .map(|(name, value)| format!("<tr><td>{name}</td><td>{}</td></tr>", escape(value)))
        .collect();
    let sections: String = outcomes.iter().map(section).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Pondhawk scenarios</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{}{STYLE}</style></head>\n<body><h1>Pondhawk scenarios</h1>\n\
         <table class=\"facts\">{facts}</table>\n{sections}</body></html>\n",
        chart::STYLE
    )
}

fn section(outcome: &Outcome) -> String {
    let scenario = &outcome.scenario;
    let mut html = format!("<h2>{}</h2><p>{}</p>\n", escape(scenario.name), escape(scenario.summary));
    let report = match &outcome.report {
        Ok(report) => report,
        Err(error) => {
            return html + &format!("<p class=\"NO\">failed: {}</p>\n", escape(&format!("{error:#}")));
        }
    };
    html += &format!("<p>{}</p>\n", escape(&report.compares));
    if !report.bars.is_empty() {
        let bars: Vec<(&str, f64, &str)> =
            report.bars.iter().map(|(label, value, text)| (label.as_str(), *value, text.as_str())).collect();
        html += &chart::bars(&report.chart, &bars);
    }
    let titles: String = TITLES.iter().map(|title| format!("<th>{title}</th>")).collect();
    html += &format!("<table><tr>{titles}</tr>\n");
    for (name, metric) in &report.metrics {
        let cells = columns(name, metric, outcome.noise.is_busy());
        let class = if ["yes", "NO"].contains(&cells[5].as_str()) { cells[5].as_str() } else { "note" };
        let (last, others) = cells.split_last().expect("six columns");
        let others: String = others.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        html += &format!("<tr>{others}<td class=\"{class}\">{}</td></tr>\n", escape(last));
    }
    html += "</table>\n";
    for note in report.notes.iter().chain([&outcome.noise.to_string()]) {
        html += &format!("<p class=\"note\">{}</p>\n", escape(note));
    }
    html
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows() {
        let mut report = Report::new("a < b");
        report.add("seconds", Metric::timed("s", &[1.0, 2.0]).wanted(Target::AtMost(30.0)));
        report.chart = "Seconds".to_owned();
        report.bars = vec![("direct".to_owned(), 2.0, "2 s".to_owned()), ("cold".to_owned(), 1.0, "1 s".to_owned())];
        let outcome = Outcome { scenario: ALL[0], noise: Noise::default(), report: Ok(report) };
        let html = page(&Machine { facts: vec![("CPU", "<x>".to_owned())] }, &[outcome]);
        assert!(html.contains("a &lt; b") && html.contains("&lt;x&gt;") && html.contains("<td class=\"yes\">yes"));
        assert!(html.contains("<svg") && !html.contains("https://") && !html.contains("src="));
    }
}
