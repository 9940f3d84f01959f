package agent

import (
	"cmp"
	"strings"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/internal/config"
)

// factorySettings names the files of a factory certificate.
type factorySettings struct {
	// The file with the certificate of the device, and then the CA certificates that issued it, in PEM. The root may be
	// left out.
	Certificate string `yaml:"certificate"`
	// The file with the private key in PEM: in PKCS #8, PKCS #1 or SEC 1 without a passphrase, or a key in the TPM (TSS2).
	// The agent's user must be able to read it. If every user can, the agent refuses it, unless the key is in the TPM.
	Key string `yaml:"key"`
}

// jwtSettings names the file of a JWT.
type jwtSettings struct {
	// The file with the token, such as `/var/run/secrets/tokens/brevet`. The agent reads it again for each request,
	// because Kubernetes and CI systems replace it.
	File string `yaml:"file"`
}

// kinds returns the keys of the configured kinds of evidence. hasToken says whether a token is one of them.
func (s settings) kinds(hasToken bool) []string {
	var keys []string
	for _, k := range []struct {
		key        string
		configured bool
	}{
		{"token_file", hasToken}, {"factory_certificate", s.FactoryCertificate != factorySettings{}},
		{"attestation", s.Attestation}, {"jwt", s.JWT != jwtSettings{}},
	} {
		if k.configured {
			keys = append(keys, k.key)
		}
	}
	return keys
}

// checkEvidence returns a [*config.Error] if the keys about evidence do not fit together. hasToken says whether a token
// is part of the evidence.
func (s settings) checkEvidence(hasToken bool) error {
	fault := func(key, problem string) error { return &config.Error{Key: key, Problem: problem} }
	kinds, known := s.kinds(hasToken), s.RootFingerprint != fingerprint{}
	switch f := s.FactoryCertificate; {
	case len(kinds) > 2:
		return fault(kinds[2], "a request has at most two kinds of evidence: remove one of "+strings.Join(kinds, ", "))
	case (f.Certificate == "") != (f.Key == ""):
		return fault("factory_certificate", "name two files: certificate and key")
	case s.Attestation && s.Key.TPM == "":
		return fault("key.tpm", "name the TPM, such as "+tpm.DefaultPath+": attestation proves that the agent's keys are in it")
	case (s.TrustDomain == "") == known:
		return fault("root_fingerprint", "set both trust_domain and root_fingerprint, or neither")
	}
	return nil
}

// checkServer returns a [*config.Error] if the agent enrolls without a token and cannot find and recognize the server.
func (s settings) checkServer(hasToken bool) error {
	if hasToken || len(s.kinds(false)) == 0 || s.Server != "" && s.RootFingerprint != (fingerprint{}) {
		return nil
	}
	return &config.Error{Key: s.kinds(false)[0], Problem: "without a token, set server, trust_domain and root_fingerprint: " +
		"the agent finds and recognizes the server by them"}
}

// bootstrap returns the configured server. It is zero if the configuration does not say how to recognize the server.
func (s settings) bootstrap() enroll.Bootstrap {
	if s.RootFingerprint == (fingerprint{}) {
		return enroll.Bootstrap{}
	}
	return enroll.Bootstrap{RootFingerprint: s.RootFingerprint, TrustDomain: s.TrustDomain, Server: s.Server}
}

// evidence returns the function that reads the configured evidence, apart from a token. It returns nil if none is
// configured.
func (s settings) evidence(device *tpm.Device) func() ([]enroll.Evidence, error) {
	if len(s.kinds(false)) == 0 {
		return nil
	}
	return func() ([]enroll.Evidence, error) {
		var all []enroll.Evidence
		for _, read := range []struct {
			configured bool
			evidence   func() (enroll.Evidence, error)
		}{
			{s.FactoryCertificate != factorySettings{}, func() (enroll.Evidence, error) {
				return s.FactoryCertificate.read(device)
			}},
			{s.Attestation, func() (enroll.Evidence, error) { return enroll.Attestation(device) }},
			{s.JWT != jwtSettings{}, func() (enroll.Evidence, error) { return enroll.ReadJWT(s.JWT.File) }},
		} {
			if !read.configured {
				continue
			}
			e, err := read.evidence()
			if err != nil {
				return nil, err
			}
			all = append(all, e)
		}
		return all, nil
	}
}

func (f factorySettings) read(device *tpm.Device) (enroll.Evidence, error) {
	c, err := enroll.ReadFactoryCertificate(f.Certificate, f.Key, device)
	if err != nil {
		return nil, err
	}
	return enroll.FactoryCertificate(c)
}

// device returns the TPM, which may hold keys of the agent and of the factory certificate.
func (s settings) device() *tpm.Device { return tpm.New(cmp.Or(s.Key.TPM, tpm.DefaultPath)) }
