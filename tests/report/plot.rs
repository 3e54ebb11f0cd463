//! Charts: well-formed whatever the values, gaps where there are none, ticks on round numbers.

use super::assert_well_formed;
use rarunet_cuda::report::palette::{PREDICTION, REFERENCE};
use rarunet_cuda::report::{LineChart, Series};

fn chart(values: &[Option<f64>]) -> LineChart {
    LineChart {
        title: "Loss".into(),
        epochs: (1..=values.len() as u64).collect(),
        series: vec![Series { name: "loss".into(), colour: REFERENCE, values: values.to_vec() }],
        from_zero: false,
    }
}

/// What stands between `before` and the next quote, for each place where `before` stands.
fn attributes<'a>(svg: &'a str, before: &str) -> Vec<&'a str> {
    svg.match_indices(before)
        .map(|(place, _)| svg[place + before.len()..].split('"').next().expect("text after a match"))
        .collect()
}

/// The paths of the curves.
fn curves(svg: &str) -> Vec<&str> {
    let lines = svg.lines().filter(|line| line.contains("class=\"curve\""));
    lines.flat_map(|line| attributes(line, " d=\"")).collect()
}

/// The labels along the vertical axis, from below.
fn ticks(svg: &str) -> Vec<&str> {
    let lines = svg.lines().filter(|line| line.contains("text-anchor=\"end\""));
    lines.map(|line| line.split(['<', '>']).nth(2).expect("a label")).collect()
}

#[test]
fn a_missing_value_leaves_a_gap() {
    for missing in [None, Some(f64::NAN), Some(f64::INFINITY), Some(f64::NEG_INFINITY)] {
        let svg = chart(&[Some(4.0), Some(3.0), missing, Some(2.0), Some(1.0)]).svg("c");
        assert_well_formed(&svg);
        let paths = curves(&svg);
        assert_eq!(paths.len(), 1);
        assert_eq!((paths[0].matches('M').count(), paths[0].matches('L').count()), (2, 2), "{}", paths[0]);
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}

#[test]
fn a_value_alone_is_a_dot_even_on_a_long_curve() {
    let mut values = vec![Some(1.0); 100];
    (values[49], values[51]) = (None, None);
    let svg = chart(&values).svg("c");
    assert_eq!(svg.matches("<circle").count(), 1);
    assert!(svg.contains("epoch 51: 1.000"));
}

#[test]
fn larger_values_are_higher_and_later_ones_further_right() {
    let svg = chart(&[Some(1.0), Some(3.0), Some(2.0)]).svg("c");
    let numbers = |name| attributes(&svg, name).iter().map(|text| text.parse().unwrap()).collect::<Vec<f64>>();
    let (x, y) = (numbers(" cx=\""), numbers(" cy=\""));
    assert!(x[0] < x[1] && x[1] < x[2], "{x:?}");
    assert!(y[1] < y[2] && y[2] < y[0], "{y:?}");
    assert!(((y[0] + y[1]) / 2.0 - y[2]).abs() <= 0.11, "{y:?}");
}

#[test]
fn ticks_are_round_numbers_around_the_values() {
    let labels = |values: &[f64], from_zero| {
        let mut chart = chart(&values.iter().copied().map(Some).collect::<Vec<_>>());
        chart.from_zero = from_zero;
        ticks(&chart.svg("c")).join(" ")
    };
    assert_eq!(labels(&[0.31, 0.96], false), "0.2 0.4 0.6 0.8 1.0");
    assert_eq!(labels(&[0.91, 0.943], false), "0.91 0.92 0.93 0.94 0.95");
    assert_eq!(labels(&[0.91, 0.943], true), "0 0.5 1.0");
    assert_eq!(labels(&[1e-5, 1e-5], true), "0 5e-6 1e-5");
    assert_eq!(labels(&[100.0, 100.0], false), "90 95 100 105 110");
    assert_eq!(labels(&[-1.0, 1.0], false), "-1.0 -0.5 0 0.5 1.0");
    assert_eq!(labels(&[2e6, 9e6], true), "0 5e6 1e7");
    assert_eq!(labels(&[0.0], true), "0 0.5 1.0");
}

#[test]
fn no_values_break_a_chart() {
    let extremes = [
        vec![],
        vec![None],
        vec![Some(f64::NAN); 3],
        vec![Some(0.0)],
        vec![Some(f64::MAX), Some(f64::MIN)],
        vec![Some(1e300), Some(-1e300)],
        vec![Some(5e-324), Some(0.0)],
        vec![Some(1e9), Some(1e9 + 1e-6)],
        vec![Some(-3.0), Some(-3.0)],
    ];
    for values in extremes {
        for from_zero in [false, true] {
            let mut chart = chart(&values);
            chart.from_zero = from_zero;
            let svg = chart.svg("c");
            assert_well_formed(&svg);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{values:?}: {svg}");
            assert!((2..=12).contains(&ticks(&svg).len()), "{values:?}: {:?}", ticks(&svg));
        }
    }
}

#[test]
fn a_chart_is_named_described_and_escaped() {
    let mut chart = chart(&[Some(0.5), None, Some(0.25)]);
    chart.title = "<b>&\"'\u{0}".into();
    let iou = vec![Some(0.4), Some(0.9), Some(0.8)];
    chart.series.push(Series { name: "I<oU".into(), colour: PREDICTION, values: iou });
    let svg = chart.svg("validation");
    let names = assert_well_formed(&svg);
    assert_eq!(names[..3], ["svg", "title", "desc"]);
    assert!(svg.contains("role=\"img\" aria-labelledby=\"validation-title validation-desc\""));
    assert!(svg.contains("&lt;b&gt;&amp;&quot;&#39;\u{fffd}") && svg.contains("I&lt;oU"));
    assert!(svg.contains("loss: from 0.5000 in epoch 1 to 0.2500 in epoch 3"));
    assert!(svg.contains("highest 0.9000 in epoch 2"));
    // Two curves and their samples in the legend, told apart by colour and by dashes.
    let paths = svg.lines().filter(|line| line.contains("class=\"curve\"") && line.contains("7 3"));
    assert!(paths.count() == 2 && svg.contains("var(--reference") && svg.contains("var(--prediction"));
}
