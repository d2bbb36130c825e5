"""Who runs where: degrees, launch environment, process groups and collectives."""
