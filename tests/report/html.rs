//! The report: complete, escaped, and without a way out.

use crate::data::{message, volume};
use rarunet_cuda::data::Geometry;
use rarunet_cuda::metrics::{CaseMetrics, Evaluation, evaluate_case};
use rarunet_cuda::report::{CasePictures, Report};
use rarunet_cuda::train::EpochRecord;

/// A name that would break a page that does not escape it.
const NASTY: &str = "<b>&\"'</script><script>alert(1)</script>";

fn record(epoch: u64) -> EpochRecord {
    EpochRecord {
        skipped_steps: 0,
        epoch,
        train_loss: 0.9 - epoch as f64 / 100.0,
        val_dice: (epoch != 2).then_some(0.7 + epoch as f64 / 1000.0),
        val_iou: (epoch != 2).then_some(0.6 + epoch as f64 / 1000.0),
        learning_rate: 1e-5,
        removed: 7,
        detection: None,
        estimated_noise: None,
        removed_total: 40 + epoch,
        images_per_s: 123.4,
        seconds: 100.0,
    }
}

fn case(hits: usize) -> CaseMetrics {
    let reference: Vec<bool> = (0..64).map(|voxel| voxel < 16).collect();
    let prediction: Vec<bool> = (0..64).map(|voxel| voxel < hits).collect();
    evaluate_case(&prediction, &reference, [4, 4, 4], [1.0; 3], 1).unwrap()
}

fn pictures(name: &str, dice: Option<f64>) -> CasePictures {
    let geometry = Geometry::axis_aligned([16, 16, 4], [1.0, 1.0, 3.0]);
    let image = volume(geometry.clone(), |x, y, _| (x * y) as f32);
    let mask = volume(geometry, |x, _, z| u8::from(x > 8 && z > 0));
    CasePictures::draw(name, dice, &image, Some(&mask), Some(&mask), 4).unwrap()
}

fn evaluation() -> Evaluation {
    let cases = [(NASTY, 16), ("empty", 0), ("half", 8)];
    Evaluation::new(cases.map(|(name, hits)| (name.to_string(), case(hits))).to_vec(), 1)
}

fn report(evaluation: &Evaluation) -> Report<'_> {
    Report {
        title: format!("Run {NASTY}"),
        notes: vec![format!("Note {NASTY}")],
        settings: vec![("model".into(), "rar-unet".into()), (format!("key {NASTY}"), format!("value {NASTY}"))],
        records: (1..=12).map(record).collect(),
        evaluation: Some(evaluation),
        cases: vec![
            pictures("middling", Some(0.8)),
            pictures(NASTY, Some(0.9)),
            pictures("poor", Some(0.1)),
            pictures("unknown", None),
        ],
    }
}

#[test]
fn nothing_leads_out_of_the_report() {
    let html = report(&evaluation()).html();
    for way_out in ["http:", "https:", "\"//", "@import", "url(", "fetch(", "XMLHttp", "<iframe", "<object", "<form"] {
        assert!(!html.contains(way_out), "{way_out}");
    }
    let mut sources = 0;
    for attribute in [" src=", " href=", " srcset=", " action=", " data=", " poster="] {
        for (place, _) in html.match_indices(attribute) {
            assert!(html[place + attribute.len()..].starts_with("\"data:"), "{}", &html[place..place + 60]);
            sources += 1;
        }
    }
    // Four cases of four pictures, and the icon that stops browsers from asking for one.
    assert_eq!(sources, 17);
    assert!(html.contains("Content-Security-Policy\" content=\"default-src 'none'; img-src data:;"));
}

#[test]
fn every_text_is_escaped() {
    let html = report(&evaluation()).html();
    assert!(!html.contains("<b>") && !html.contains("alert(1)</script>"));
    assert_eq!(html.matches("<script>").count(), 1);
    let escaped = "&lt;b&gt;&amp;&quot;&#39;&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;";
    for place in [
        format!("<title>Run {escaped}</title>"),
        format!("<h1>Run {escaped}</h1>"),
        format!("<li>Note {escaped}</li>"),
        format!("<th scope=\"row\">key {escaped}</th><td>value {escaped}</td>"),
        format!("<h3>{escaped}</h3>"),
        format!("<th scope=\"row\" data-value=\"{escaped}\">{escaped}</th>"),
        format!("alt=\"{escaped}, slice 0, both masks are empty\""),
        format!("aria-label=\"Slice of {escaped}\""),
    ] {
        assert!(html.contains(&place), "{place}");
    }
}

#[test]
fn every_case_and_every_epoch_is_there() {
    let html = report(&evaluation()).html();
    for name in ["middling", "poor", "unknown"] {
        assert!(html.contains(&format!("<h3>{name}</h3>")), "{name}");
    }
    for record in (1..=12).map(record) {
        let optional = |value: Option<f64>| value.map_or("\u{2013}".to_string(), |value| format!("{value:.4}"));
        let row = format!(
            "<tr><th scope=\"row\">{}</th><td>{:.4}</td><td>{}</td><td>{}</td><td>1e-5</td><td>7</td><td>{}</td><td>123.4</td><td>100.0</td></tr>",
            record.epoch,
            record.train_loss,
            optional(record.val_dice),
            optional(record.val_iou),
            record.removed_total
        );
        assert!(html.contains(&row), "{row}");
        assert!(html.contains(&format!("loss, epoch {}: {:.4}</title>", record.epoch, record.train_loss)));
    }
    // Dice of 16 voxels, 8 of which were found: 2 * 8 / (8 + 16).
    assert!(html.contains("<td data-value=\"0.6666666666666666\">0.6667</td>"));
    assert!(html.contains("<td><abbr title=\"the prediction is empty\">\u{2013}</abbr></td>"));
    // No distance to the empty prediction.
    assert!(html.contains("mean of 3 cases") && html.contains("<dd class=\"detail\">mean of 2 cases</dd>"));
    // The best epoch and all epochs' time.
    assert!(html.contains("<dd class=\"value\">0.7120</dd><dd class=\"detail\">best, in epoch 12</dd>"));
    assert!(html.contains("<dd class=\"value\">20 min 0 s</dd>"));
}

#[test]
fn cases_run_from_best_to_worst() {
    let html = report(&evaluation()).html();
    let place = |text: &str| html.find(text).unwrap_or_else(|| panic!("{text} is missing"));
    let order = ["<h3>&lt;b&gt;", ">best<", "<h3>middling<", "<h3>poor<", ">worst<", "<h3>unknown<"].map(place);
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn the_tags_of_the_body_nest() {
    let html = report(&evaluation()).html();
    let body = html.split_once("<main>").unwrap().1.split_once("</main>").unwrap().0;
    // HTML's void elements and its attributes without a value, as XML has them.
    let mut xml = body.replace(" hidden>", " hidden=\"\">");
    for element in ["<img ", "<input "] {
        let parts: Vec<String> = xml
            .split(element)
            .enumerate()
            .map(|(number, part)| if number == 0 { part.to_string() } else { part.replacen('>', "/>", 1) })
            .collect();
        xml = parts.join(element);
    }
    let names = super::assert_well_formed(&xml);
    let count = |name: &str| names.iter().filter(|known| *known == name).count();
    // Loss, validation, learning rate, speed and removed masks, and two samples of contours.
    assert_eq!((count("svg"), count("img"), count("table")), (7, 16, 4));
}

#[test]
fn an_empty_report_is_a_page() {
    let html = Report { title: "Nothing yet".into(), ..Report::default() }.html();
    assert!(html.contains("<h1>Nothing yet</h1>") && !html.contains("<section"));
    let none = Evaluation::new(Vec::new(), 1);
    let html = Report { evaluation: Some(&none), records: vec![record(2)], ..Report::default() }.html();
    // The one epoch did not validate.
    assert!(html.contains("Training loss") && !html.contains("Validation Dice") && !html.contains(">Validation<"));
}

#[test]
fn a_report_is_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/report.html");
    let evaluation = evaluation();
    let report = report(&evaluation);
    report.write(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), report.html());
    assert_eq!(std::fs::read_dir(folder.path().join("run")).unwrap().count(), 1);
    assert!(message(report.write(&path.join("no-folder"))).contains("report.html"));
}
