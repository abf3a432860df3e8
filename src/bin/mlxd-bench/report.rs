//! What rank 0 prints, and the CSV file.

use crate::document::{Document, Record};
use crate::options::{Format, Options};

/// The lines above the first result.
pub fn header(options: &Options, document: &Document) -> String {
    if options.format == Format::Lines {
        return String::new();
    }
    let place = if options.in_place { "in place" } else { "out of place" };
    let cache = if options.cold { "cold caches" } else { "warm caches" };
    let plural = if document.ranks == 1 { "" } else { "s" };
    format!(
        "# mlxd-bench {}: {}, {} rank{plural} on backend {}, {place}, {cache}\n\
         # {}, {} cores, Linux {}\n\
         #\n\
         # {:>11} {:>12} {:>9} {:>11} {:>4} {:>11} {:>8} {:>8} {:>7}\n\
         # {:>11} {:>12} {:>9} {:>11} {:>4} {:>11} {:>8} {:>8} {:>7}\n",
        document.version,
        document.label,
        document.ranks,
        document.backend,
        document.host.cpu,
        document.host.cores,
        document.host.kernel,
        "size",
        "count",
        "type",
        "op",
        "root",
        "time",
        "algbw",
        "busbw",
        "#wrong",
        "(B)",
        "(elements)",
        "",
        "",
        "",
        "(us)",
        "(GB/s)",
        "(GB/s)",
        ""
    )
}

/// One result.
pub fn row(options: &Options, document: &Document, record: &Record) -> String {
    if options.format == Format::Lines {
        let Document { label, ranks, .. } = document;
        let mut label = label.clone();
        // Lines have no column for these.
        if options.op.list.len() > 1 {
            label = format!("{label}-{}", record.op);
        }
        if options.datatype.0.len() > 1 {
            label = format!("{label}-{}", record.dtype);
        }
        return format!("{label} {ranks} {} {:.2}\n", record.bytes, record.time_us.median);
    }
    format!(
        "  {:>11} {:>12} {:>9} {:>11} {:>4} {:>11.2} {:>8.3} {:>8.3} {:>7}\n",
        record.bytes,
        record.count,
        record.dtype,
        record.op,
        record.root.map_or("-1".to_owned(), |root| root.to_string()),
        record.time_us.median,
        record.algbw_gbps,
        record.busbw_gbps,
        record.wrong.map_or("N/A".to_owned(), |wrong| wrong.to_string()),
    )
}

/// The lines below the last result.
pub fn footer(options: &Options, document: &Document) -> String {
    if options.format == Format::Lines {
        return String::new();
    }
    let rates: Vec<f64> = document
        .results
        .iter()
        .filter(|record| record.bytes > 0)
        .map(|record| record.busbw_gbps)
        .collect();
    let mut text = match (options.check, document.wrong()) {
        (false, _) => "# wrong elements: not checked\n".to_owned(),
        (true, 0) => "# wrong elements: 0 OK\n".to_owned(),
        (true, wrong) => format!("# wrong elements: {wrong} FAILED\n"),
    };
    if !rates.is_empty() {
        let average = rates.iter().sum::<f64>() / rates.len() as f64;
        text += &format!("# average bus bandwidth: {average:.3} GB/s\n");
    }
    text
}

/// The whole CSV file: one line per result.
pub fn csv(document: &Document) -> String {
    let mut text =
        "label,backend,ranks,op,dtype,root,in_place,bytes,count,iterations,time_us,min_us,\
                    p10_us,p90_us,p99_us,max_us,slowest_us,algbw_gbps,busbw_gbps,wrong\n"
            .to_owned();
    for record in &document.results {
        let Record { op, dtype, in_place, bytes, count, iterations, time_us: times, .. } = record;
        let root = record.root.map_or(String::new(), |root| root.to_string());
        let wrong = record.wrong.map_or(String::new(), |wrong| wrong.to_string());
        text += &format!(
            "{},{},{},{op},{dtype},{root},{in_place},{bytes},{count},{iterations},\
             {:.3},{:.3},{:.3},{:.3},{:.3},{:.3},{:.3},{:.6},{:.6},{wrong}\n",
            quoted(&document.label),
            document.backend,
            document.ranks,
            times.median,
            times.min,
            times.p10,
            times.p90,
            times.p99,
            times.max,
            times.slowest_median,
            record.algbw_gbps,
            record.busbw_gbps
        );
    }
    text
}

/// A field that may hold anything (RFC 4180).
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_with_commas_are_quoted() {
        assert_eq!(quoted("mlxd-ring"), "mlxd-ring");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
