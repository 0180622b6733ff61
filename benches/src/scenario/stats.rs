//! Figures from repeated runs.

/// The one in the middle; of an even number, the mean of the two in the middle. None of no runs.
pub fn median(runs: &[f64]) -> Option<f64> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 { Some(upper) } else { Some((sorted[sorted.len() / 2 - 1] + upper) / 2.0) }
}

/// Half of the distance between the smallest and the largest run, so that the median of a repetition is expected within it. None of
/// fewer than two runs: one run does not tell.
pub fn spread(runs: &[f64]) -> Option<f64> {
    let largest = runs.iter().copied().reduce(f64::max)?;
    let smallest = runs.iter().copied().reduce(f64::min)?;
    (runs.len() > 1).then_some((largest - smallest) / 2.0)
}

/// Each of our runs as a multiple of theirs beside it: what both had to bear at that moment cancels out. As many as the shorter side has.
pub fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_does_not_care_for_order_or_an_outlier() {
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 900.0]), Some(3.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_spread_is_half_the_range_and_one_run_has_none() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(1.0));
        assert_eq!(spread(&[2.0, 2.0]), Some(0.0));
        assert_eq!((spread(&[2.0]), spread(&[])), (None, None));
    }

    #[test]
    fn what_slows_both_sides_down_cancels_out_of_paired_ratios() {
        let (ours, theirs) = ([2.0, 4.0, 2.0], [1.0, 2.0, 1.0]);
        assert_eq!(ratios(&ours, &theirs), [2.0, 2.0, 2.0]);
        assert_eq!(spread(&ratios(&ours, &theirs)), Some(0.0));
    }
}
