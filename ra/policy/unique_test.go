package policy_test

import (
	"testing"

	"github.com/brevet-pki/brevet/ra/policy"
)

// TestAmbiguousIdentities checks rules whose unique fact repeats in other sources or namespaces.
func TestAmbiguousIdentities(t *testing.T) {
	x5c := func(keys string) string { return one("evidence: [x5c], " + keys) }
	jwt := func(keys string) string { return one("evidence: [jwt], " + keys) }
	const (
		acme     = `when: 'x5c.source == "acme"', `
		serial   = "x5c.serial is unique only within x5c.source: compare x5c.source with == in the condition, or add {x5c.source} to the path"
		issuer   = "x5c.certificate_serial is unique only within x5c.issuer"
		source   = "jwt.subject is unique only within jwt.source"
		spaces   = "jwt.kubernetes.service_account is unique only within jwt.kubernetes.namespace"
		dnsNames = "two devices could get the same DNS name: "
	)
	checkFaults(t, []faulty{
		{x5c(`identity: "device/{x5c.serial}"`), serial},
		{x5c(`identity: "device/{x5c.serial}", when: 'x5c.source in ["acme", "other"]'`), serial},
		{x5c(`identity: "device/{x5c.serial}", when: 'x5c.source == "acme" || x5c.organization == "ACME"'`), serial},
		{x5c(`identity: "device/{x5c.serial}", when: 'x5c.source.startsWith("acme")'`), serial},
		{x5c(`identity: "device/{x5c.serial}", when: 'x5c.source != "other"'`), serial},
		{x5c(`identity: "device/{x5c.serial}", when: 'x5c.issuer == "CN=ACME"'`), serial},
		{x5c(`identity: "device/{extract(x5c.source, '(.).*')}/{x5c.serial}"`), serial},
		{x5c(acme + `identity: "device/{x5c.certificate_serial}"`), issuer},
		{jwt(`identity: "ci/{digest(jwt.subject)}"`), source},
		{jwt(`identity: "ci/{digest(jwt.subject)}", when: '"a" in jwt.audience'`), source},
		{jwt(`identity: "a/{jwt.kubernetes.service_account}", when: 'jwt.source == "a"'`), spaces},
		{jwt(`identity: "a/{jwt.kubernetes.namespace}/{jwt.kubernetes.service_account}"`), "only within jwt.source"},
		{x5c(acme + `register: true, identity: "device/{x5c.serial}", dns_names: ["{x5c.hardware_type}.example"]`),
			dnsNames + "add one of x5c.serial, x5c.certificate_serial to the name"},
		{x5c(acme + `register: true, identity: "device/{x5c.serial}", dns_names: ["{split(x5c.serial, '-', 1)}.example"]`), dnsNames},
		{x5c(`register: true, identity: "{x5c.source}/{x5c.serial}", dns_names: ["{x5c.serial}.example"]`),
			dnsNames + "x5c.serial is unique only within x5c.source"},
		{one(`evidence: [token], register: true, dns_names: ["{split(token.identity, '/', 1)}.example"]`),
			dnsNames + "the evidence has no unique fact: remove the placeholders from the name"},
	})
	for _, document := range []string{
		x5c(acme + `identity: "device/{x5c.serial}"`),
		x5c(`identity: "device/{x5c.serial}", when: 'x5c.source in ["acme"] && x5c.serial.startsWith("a")'`),
		x5c(`identity: "device/{x5c.source}/{x5c.serial}"`),
		x5c(`identity: "device/{digest(x5c.source)}-a/{split(x5c.serial, '-', 1)}"`),
		x5c(acme + `identity: "device/{digest(x5c.issuer)}/{x5c.certificate_serial}"`),
		x5c(`when: 'x5c.issuer == "CN=ACME" && x5c.source == "acme"', identity: "device/{x5c.certificate_serial}"`),
		x5c("identity: device/1"),
		jwt(`identity: "ci/{digest(jwt.subject)}", when: 'jwt.issuer == "https://ci.example"'`),
		jwt(`identity: "{jwt.kubernetes.namespace}/{jwt.kubernetes.service_account}", when: 'jwt.source == "a"'`),
		jwt(`identity: "a/{jwt.kubernetes.service_account}", when: 'jwt.source == "a" && "b" == jwt.kubernetes.namespace'`),
		one(`evidence: [x5c, tpm], identity: "device/{x5c.hardware_type}/{tpm.ek}"`),
		x5c(acme + `register: true, identity: "device/{x5c.serial}", dns_names: ["cam-{x5c.serial}.example", www.example]`),
		x5c(acme + `register: true, identity: "d/{split(x5c.serial, '-', 1)}", dns_names: ["{split(x5c.serial, '-', 1)}.example"]`),
		x5c(`register: true, identity: device/1, dns_names: ["{x5c.common_name}.example"]`),
		one("evidence: [token], register: true, dns_names: [www.example]"),
	} {
		if _, err := policy.Compile([]byte(document), 1, environment(t)); err != nil {
			t.Errorf("%s%v", document, err)
		}
	}
}

// TestSimulatedHardware checks rules that a program without a TPM could match.
func TestSimulatedHardware(t *testing.T) {
	tpm := func(keys string) string { return one("evidence: [tpm], hardware_key: true, " + keys) }
	const simulated = "rule a: hardware_key: a program that simulates the hardware could match this rule: require tpm.certified in the condition, or compare tpm.ek"
	checkFaults(t, []faulty{
		{tpm("identity: device/1"), simulated},
		{tpm(`register: true, identity: "device/{tpm.ek}"`), simulated},
		{tpm(`identity: "device/{split(tpm.ek, 'a', 1)}"`), simulated},
		{tpm("identity: device/1, when: '!tpm.certified'"), simulated},
		{tpm("identity: device/1, when: tpm.certified || tpm.model == 'a'"), simulated},
		{tpm("identity: device/1, when: tpm.certified == false"), simulated},
		{tpm("identity: device/1, when: tpm.source != 'a'"), simulated},
		{tpm("identity: device/1, when: tpm.ek.startsWith('ab')"), simulated},
		{tpm("identity: device/1, when: tpm.ek != 'ab'"), simulated},
		{one("evidence: [token, tpm], hardware_key: true"), simulated},
		{one("evidence: [x5c], hardware_key: true, identity: device/1"), "no evidence of this rule proves that a key is in hardware: add tpm"},
		{one("evidence: [token], hardware_key: true"), "no evidence of this rule proves"},
	})
	for _, document := range []string{
		tpm(`identity: "device/{tpm.ek}"`), tpm(`identity: "device/{digest(tpm.ek)}", when: '!tpm.certified'`),
		tpm(`register: true, identity: "device/{tpm.ek}", when: tpm.certified`),
		tpm("identity: device/1, when: tpm.certified == true && tpm.model == 'a'"),
		tpm("identity: device/1, when: tpm.source == 'a'"), tpm(`identity: device/1, when: "tpm.source in ['a', 'b']"`),
		tpm("identity: device/1, when: tpm.source != ''"), tpm("identity: device/1, when: tpm.manufacturer.startsWith('id:')"),
		tpm("identity: device/1, when: tpm.ek == 'ab'"), tpm(`register: true, identity: device/1, when: "tpm.ek in ['ab', 'cd']"`),
		one("evidence: [token, tpm], hardware_key: true, when: tpm.certified"),
	} {
		if _, err := policy.Compile([]byte(document), 1, environment(t)); err != nil {
			t.Errorf("%s%v", document, err)
		}
	}
}
