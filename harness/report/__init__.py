"""The report: reads tables, writes one page. It trains, times and computes no statistic of its own."""
