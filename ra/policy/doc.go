// Package policy decides what verified evidence grants. A policy is one YAML document with an ordered list of rules, and
// the first rule that matches decides. [Compile] checks a document, and returns a [Policy], which implements
// [ra.Policy]. A rule has a condition in CEL, the Common Expression Language, and templates that form the identity, its
// labels and its DNS names from verified values.
//
// Compile refuses a document with any fault, and reports all faults with their lines: unknown keys, repeated names,
// conditions with a wrong type or a high cost, templates in which two devices could get the same identity, and rules
// that no request can reach. It refuses documents over 1 MiB, YAML aliases, and more than 5000 rules.
//
// Grant refuses claims that no rule matches, and claims whose values do not fit into a template: values that are empty,
// or have slashes, dot segments, globs, control characters or characters outside of ASCII. It never changes the case of
// a value, and a value can never add a path segment or a DNS label. If a condition cannot be evaluated, Grant refuses
// the request, and does not try the next rule.
//
// Conditions use the subset of CEL's standard library whose results and costs are bounded. Paths are those of SPIFFE IDs
// (SPIFFE ID specification §2.3). DNS names consist of the labels of RFC 1123 §2.1.
package policy
