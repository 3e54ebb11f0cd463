//! The table, the CSV and the JSON of an evaluation.

use rarunet_cuda::metrics::{Evaluation, evaluate_case};
use serde_json::{Value, json};

/// Two slices of 3 x 3, the second of which is empty in both masks, and a case with no prediction.
fn evaluation() -> Evaluation {
    let reference: Vec<bool> = (0..18).map(|voxel| voxel < 4).collect();
    let prediction: Vec<bool> = (0..18).map(|voxel| voxel < 3).collect();
    let case = |prediction: &[bool]| evaluate_case(prediction, &reference, [3, 3, 2], [1.0, 2.0, 3.0], 1).unwrap();
    let cases = vec![("good".to_string(), case(&prediction)), ("a,\"b\"\n".to_string(), case(&[false; 18]))];
    Evaluation::new(cases, 1)
}

#[test]
fn json_has_every_key_and_nulls_with_reasons() {
    let json: Value = serde_json::from_str(&serde_json::to_string(&evaluation()).unwrap()).unwrap();
    assert_eq!(json["neighbourhood_radius"], 1);
    assert_eq!(json["units"], json!({"slices": "pixels", "volume": "mm"}));
    let keys = "dice iou accuracy precision recall specificity rvd rvd_absolute hd hd95 assd dbd_g dbd_m sbd";
    for key in keys.split(' ') {
        for scope in ["slices", "volume"] {
            assert!(json["cases"][0][scope][key].is_f64(), "{scope} {key}");
            assert!(json["summary"][scope][key]["mean"].is_f64(), "{scope} {key}");
        }
    }

    let good = &json["cases"][0];
    assert_eq!(good["name"], "good");
    assert_eq!(good["volume"]["dice"], json!(6.0 / 7.0));
    assert_eq!((&good["volume"]["hd"], &good["slices"]["hd"]), (&json!(2.0), &json!(1.0)));
    assert_eq!(good["volume"]["undefined"], json!({}));
    assert_eq!(good["slices"]["dice"], good["volume"]["dice"]);
    assert_eq!(good["slices"]["count"], 2);
    assert_eq!(good["slices"]["undefined"]["dice"], json!({"both masks are empty": 1}));

    let missed = &json["cases"][1];
    assert_eq!((&missed["volume"]["dice"], &missed["volume"]["hd"]), (&json!(0.0), &Value::Null));
    assert_eq!(missed["volume"]["undefined"]["hd"], "the prediction is empty");
    assert_eq!(missed["slices"]["hd"], Value::Null);

    let summary = &json["summary"];
    assert_eq!(summary["volume"]["dice"]["mean"], json!(3.0 / 7.0));
    assert_eq!(summary["volume"]["dice"]["interval_95"], json!([0.0, 6.0 / 7.0]));
    assert_eq!(summary["volume"]["hd"]["interval_95"], Value::Null);
    assert_eq!(summary["slices"]["dice"]["defined"], 2);
    assert_eq!(summary["slices"]["hd"]["undefined"], json!({"both masks are empty": 2, "the prediction is empty": 1}));
}

#[test]
fn csv_has_a_row_a_scope_and_quotes_names() {
    let csv = evaluation().csv();
    let lines: Vec<&str> = csv.split('\n').collect();
    assert_eq!(
        lines[0],
        "case,scope,dice,iou,accuracy,precision,recall,specificity,rvd,rvd_absolute,hd,hd95,assd,dbd_g,dbd_m,sbd,undefined"
    );
    assert!(lines[1].starts_with("good,slices,0.857142857142857"), "{}", lines[1]);
    assert!(lines[2].starts_with("good,volume,0.857142857142857") && lines[2].ends_with(','), "{}", lines[2]);
    // The name holds a line break, so its rows take two lines each.
    assert_eq!(lines[5], "\"a,\"\"b\"\"");
    assert_eq!(
        lines[6],
        "\",volume,0,0,0.7777777777777778,,0,1,-1,1,,,,0,,0,\"precision, hd, hd95, assd, dbd_m: the prediction is empty\""
    );
    assert_eq!(lines.len(), 8);
}

#[test]
fn table_is_aligned_and_says_why() {
    let table = evaluation().table();
    let volumes = &table[table.find("volumes, 3D").unwrap()..];
    let expected = "\
volumes, 3D: hd, hd95, assd in mm; dbd, sbd in neighbourhoods of radius 1

case              dice     iou  accuracy  precision  recall  specificity
good            0.8571  0.7500    0.9444     1.0000  0.7500       1.0000
a,\"b\"?          0.0000  0.0000    0.7778          -  0.0000       1.0000
mean            0.4286  0.3750    0.8611     1.0000  0.3750       1.0000
median          0.4286  0.3750    0.8611     1.0000  0.3750       1.0000
mean, 95% from  0.0000  0.0000    0.7778          -  0.0000       1.0000
mean, 95% to    0.8571  0.7500    0.9444          -  0.7500       1.0000
";
    assert!(volumes.starts_with(expected), "{volumes}");
    let reasons = "\
undefined, and left out of the means:
  a,\"b\"?: precision, hd, hd95, assd, dbd_m: the prediction is empty
";
    assert!(volumes.ends_with(reasons), "{volumes}");
    assert!(table.starts_with("axial slices, 2D: hd, hd95, assd in pixels"));
    assert!(table.contains("  good: dice, iou, precision, recall, rvd, rvd_absolute, hd, hd95, assd, dbd_g, dbd_m, sbd: both masks are empty in 1 of 2 slices\n"), "{table}");
}
