//! Numbers, times and tables for people.

/// `1.5 GiB`: three digits at least, four at most.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// `3 d`, `2 h`, `5 min`, `9 s`: the largest whole unit.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `42%`, never rounded up to what is not reached; `-` of nothing.
pub(super) fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".into(),
        whole => format!("{}%", u128::from(part) * 100 / u128::from(whole)),
    }
}

/// Without control characters, which a name from elsewhere could send to the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Columns as wide as their widest cell; those named in `right` to the right.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]], right: &[usize]) -> String {
    let head = head.map(String::from);
    let all = || std::iter::once(&head).chain(rows);
    let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match right.contains(&column) {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    all().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")];
        cases.iter().for_each(|(bytes, text)| assert_eq!(size(*bytes), *text));
        assert_eq!(size((1 << 20) - 1), "1.0 MiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn what_is_not_whole_is_never_a_hundred_percent() {
        assert_eq!([percent(999, 1000), percent(5, 5), percent(0, 0)], ["99%", "100%", "-"]);
    }

    #[test]
    fn a_table_has_straight_columns() {
        let rows = [["a".to_owned(), "10".to_owned()], ["long".to_owned(), "1".to_owned()]];
        assert_eq!(table(["NAME", "N"], &rows, &[1]), "NAME   N\na     10\nlong   1\n");
    }

    #[test]
    fn a_name_cannot_speak_to_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }

    #[test]
    fn ages_name_their_largest_unit() {
        assert_eq!([age(59), age(60), age(7_300), age(200_000)], ["59 s", "1 min", "2 h", "2 d"]);
    }
}
