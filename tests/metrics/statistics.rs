//! Summaries over cases and the comparison of two methods.

use rarunet_cuda::metrics::Metric;
use rarunet_cuda::metrics::summary::Summary;
use rarunet_cuda::metrics::wilcoxon::Wilcoxon;
use serde::Deserialize;

/// One entry of wilcoxon.json.
#[derive(Deserialize)]
struct SignedRanks {
    first: Vec<f64>,
    second: Vec<f64>,
    statistic: f64,
    p_value: f64,
    exact: bool,
}

#[test]
fn wilcoxon_agrees_with_scipy() {
    let tests: Vec<SignedRanks> = serde_json::from_str(include_str!("wilcoxon.json")).unwrap();
    assert!(tests.iter().any(|test| test.exact) && tests.iter().any(|test| !test.exact));
    for test in tests {
        let measured = Wilcoxon::test(&test.first, &test.second).unwrap();
        assert_eq!((measured.statistic, measured.exact), (test.statistic, test.exact));
        let error = (measured.p_value - test.p_value).abs();
        assert!(error <= 1e-10 * test.p_value, "{measured:?}, expected {}", test.p_value);
        assert_eq!(Wilcoxon::test(&test.second, &test.first).unwrap(), measured);
    }
}

#[test]
fn wilcoxon_of_nothing_is_an_error() {
    assert!(Wilcoxon::test(&[0.5, 0.6], &[0.5, 0.6]).is_err());
    assert!(Wilcoxon::test(&[], &[]).is_err());
    assert!(Wilcoxon::test(&[0.5, f64::NAN], &[0.4, 0.3]).is_err());
    assert!(Wilcoxon::test(&[0.5], &[0.4, 0.3]).unwrap_err().to_string().contains("1 figures against 2"));
}

#[test]
fn summaries_leave_undefined_figures_out() {
    let groups = [
        vec![Metric::Value(0.9), Metric::Undefined("both masks are empty"), Metric::Value(0.8)],
        vec![Metric::Undefined("both masks are empty"), Metric::Undefined("the prediction is empty")],
        vec![Metric::Value(0.1), Metric::Value(0.6)],
    ];
    let summary = Summary::of(&groups, 1);
    assert!((summary.mean.value().unwrap() - 0.6).abs() < 1e-12);
    assert!((summary.median.value().unwrap() - 0.7).abs() < 1e-12);
    assert_eq!(summary.defined, 4);
    assert_eq!(summary.undefined, [("both masks are empty", 2), ("the prediction is empty", 1)].into());
    // Only two groups have figures: their means are all the bootstrap can draw.
    let [low, high] = summary.interval_95.unwrap();
    assert!((low - 0.35).abs() < 1e-12 && (high - 0.85).abs() < 1e-12, "{low}, {high}");
}

#[test]
fn summaries_of_few_figures() {
    let none = Summary::of(&[vec![Metric::Undefined("the prediction is empty")]], 1);
    assert_eq!(none.mean, Metric::Undefined("the prediction is empty"));
    assert_eq!((none.median, none.interval_95, none.defined), (none.mean, None, 0));
    assert_eq!(Summary::of(&[], 1).mean, Metric::Undefined("there are no cases"));
    let one = Summary::of(&[vec![Metric::Value(0.9)]], 1);
    assert_eq!((one.mean, one.median, one.interval_95), (Metric::Value(0.9), Metric::Value(0.9), None));
}

#[test]
fn the_bootstrap_interval_is_that_of_the_mean() {
    // 100 figures, evenly over [0, 1]: the mean's standard error is sqrt(1 / 12 / 100) = 0.0289.
    let figures: Vec<Metric> = (0..100).map(|case| Metric::Value((f64::from(case) + 0.5) / 100.0)).collect();
    let cases: Vec<_> = figures.iter().map(|&figure| vec![figure]).collect();
    let summary = Summary::of(&cases, 1);
    let [low, high] = summary.interval_95.unwrap();
    let expected = 1.96 * (1.0f64 / 1200.0).sqrt();
    assert!((0.5 - low - expected).abs() < 0.005 && (high - 0.5 - expected).abs() < 0.005, "{low}, {high}");
    // One patient alone: the slices are drawn.
    assert_eq!(Summary::of(&[figures], 1), summary);
    assert_eq!(Summary::of(&cases, 1), summary);
    assert_ne!(Summary::of(&cases, 2).interval_95, summary.interval_95);
}
