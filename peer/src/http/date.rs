//! HTTP dates [pure] (RFC 9110 §5.6.7), as seconds since 1970.

use time::{Date, Month, OffsetDateTime, Time, format_description::FormatItem, macros::format_description};

const IMF_FIXDATE: &[FormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
/// 0001-01-01 and 9999-12-31T23:59:59: what four digits of a year can say.
const REPRESENTABLE: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The IMF-fixdate of a Unix time; a time outside the years 1 to 9999 is moved to the nearest one inside.
pub fn format(unix: i64) -> String {
    let unix = unix.clamp(*REPRESENTABLE.start(), *REPRESENTABLE.end());
    let moment = OffsetDateTime::from_unix_timestamp(unix).expect("clamped to what the calendar holds");
    moment.format(&IMF_FIXDATE).expect("every component is in an OffsetDateTime")
}

/// Reads an IMF-fixdate, an RFC 850 date, or an asctime date. `now` (Unix) decides the century of a two-digit year: one
/// that seems more than 50 years ahead lies in the past. The name of the weekday is not compared with the date.
pub fn parse(value: &[u8], now: i64) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let words: Vec<&str> = text.split_ascii_whitespace().take(7).collect();
    match words[..] {
        [weekday, day, month, year, clock, "GMT"] if weekday.ends_with(',') => {
            moment(digits(year, 4)?, month, digits(day, 2)?, clock)
        }
        [weekday, date, clock, "GMT"] if weekday.ends_with(',') => {
            let mut parts = date.split('-');
            let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
            parts.next().is_none().then_some(())?;
            recent_century(digits(year, 2)?, now, |year| moment(year, month, digits(day, 2)?, clock))
        }
        [_, month, day, clock, year] => {
            let day = digits(day, 2).or_else(|| digits(day, 1))?;
            moment(digits(year, 4)?, month, day, clock)
        }
        _ => None,
    }
}

fn recent_century(two_digits: u16, now: i64, at: impl Fn(u16) -> Option<i64>) -> Option<i64> {
    let this_year = OffsetDateTime::from_unix_timestamp(now).ok()?.year();
    let year = u16::try_from(this_year).ok()? / 100 * 100 + two_digits;
    let half_century = time::Duration::days(365 * 50 + 12).whole_seconds();
    let ahead = at(year).is_none_or(|then| then > now.saturating_add(half_century));
    if ahead { at(year.checked_sub(100)?) } else { at(year) }
}

fn moment(year: u16, month: &str, day: u16, clock: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = u8::try_from(MONTHS.iter().position(|name| *name == month)? + 1).ok()?;
    let date = Date::from_calendar_date(year.into(), Month::try_from(month).ok()?, u8::try_from(day).ok()?).ok()?;
    let mut parts = clock.split(':').map(|part| digits(part, 2).and_then(|n| u8::try_from(n).ok()));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    // The grammar has leap seconds, Unix time has not.
    let time = Time::from_hms(hour, minute, if second == 60 { 59 } else { second }).ok()?;
    parts.next().is_none().then(|| date.with_time(time).assume_utc().unix_timestamp())
}

fn digits(text: &str, len: usize) -> Option<u16> {
    (text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: i64 = 784_111_777;
    const NOW: i64 = 1_800_000_000;

    #[test]
    fn the_three_forms_of_the_rfc_are_one_moment() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(parse(text.as_bytes(), NOW), Some(EXAMPLE), "{text}");
        }
        assert_eq!(format(EXAMPLE), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn a_two_digit_year_is_never_far_in_the_future() {
        let year = |text: &str| format(parse(text.as_bytes(), NOW).unwrap())[12..16].to_owned();
        assert_eq!(year("Sunday, 06-Nov-70 08:49:37 GMT"), "2070");
        assert_eq!(year("Sunday, 06-Nov-78 08:49:37 GMT"), "1978");
        assert_eq!(year("Tuesday, 29-Feb-00 08:49:37 GMT"), "2000");
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in [
            "",
            "0",
            "-1",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 nov 1994 08:49:37 GMT",
            "Sun, +6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37:00 GMT",
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_formatted_date_reads_back_as_itself(unix in REPRESENTABLE) {
            prop_assert_eq!(parse(format(unix).as_bytes(), NOW), Some(unix));
        }

        #[test]
        fn no_text_and_no_time_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            text in "[A-Z][a-z]{2}, [0-9]{2}[ -][A-Z][a-z]{2}[ -][0-9]{2,4} [0-9:]{8} GMT",
            unix: i64,
        ) {
            let _ = parse(&bytes, unix);
            let _ = parse(text.as_bytes(), unix);
            prop_assert_eq!(format(unix).len(), 29);
        }
    }
}
