package tpm

import (
	"encoding/hex"

	"github.com/google/go-tpm/tpm2"
)

// aesCFB is the cipher with which a storage key protects its children.
func aesCFB(bits tpm2.TPMKeyBits) tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits),
		Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}

// ecc returns the template of a key on a curve. The unique part is empty.
func ecc(
	curve tpm2.TPMECCCurve, nameAlg tpm2.TPMAlgID, attributes tpm2.TPMAObject, p tpm2.TPMSECCParms,
) tpm2.TPMTPublic {
	p.CurveID = curve
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: nameAlg, ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &p),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

// storageTemplate is the template of the storage primary key (TCG TPM v2.0 Provisioning Guidance, section 7.5.1), with
// the empty unique part that draft-bottomley-tpm2-keys, section 3.1.8, requires of the parents of keys in files.
func storageTemplate() tpm2.TPMTPublic {
	return ecc(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
		Restricted: true, Decrypt: true,
	}, tpm2.TPMSECCParms{Symmetric: aesCFB(128)})
}

// attestationTemplate is the template of the attestation key, a primary key of the owner hierarchy.
func attestationTemplate() tpm2.TPMTPublic {
	return ecc(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
		Restricted: true, SignEncrypt: true,
	}, tpm2.TPMSECCParms{Scheme: tpm2.TPMTECCScheme{
		Scheme:  tpm2.TPMAlgECDSA,
		Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
	}})
}

// keyTemplate is the template of a [Key]. Wrong passwords do not lock it, because it has none.
func keyTemplate() tpm2.TPMTPublic {
	return ecc(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true,
	}, tpm2.TPMSECCParms{})
}

// A template is one of the templates of endorsement keys, with the index of its certificate (TCG EK Credential Profile
// 2.5, section 2.2.1.4 and annex B).
type template struct {
	index  tpm2.TPMHandle
	public func() tpm2.TPMTPublic
	// policy means that the key is used with the policy PolicySecret(endorsement hierarchy), and not with a password.
	policy bool
}

// templates are the templates of endorsement keys in the order of preference. A TPM without a certificate uses the
// first, which every TPM supports.
var templates = []template{
	{0x01c00002, func() tpm2.TPMTPublic { return tpm2.RSAEKTemplate }, true},
	{0x01c0000a, func() tpm2.TPMTPublic { return tpm2.ECCEKTemplate }, true},
	{0x01c00014, highP256, false},
	{0x01c00016, highP384, false},
	{0x01c00012, highRSA, false},
}

// The digests of PolicyB (TCG EK Credential Profile 2.5, section B.6.5).
const (
	policyB256 = "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"
	policyB384 = "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)

func highAttributes() tpm2.TPMAObject {
	return tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, AdminWithPolicy: true,
		Restricted: true, Decrypt: true,
	}
}

// highP256 returns the template H-2.
func highP256() tpm2.TPMTPublic {
	return highECC(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, 128, policyB256)
}

// highP384 returns the template H-3.
func highP384() tpm2.TPMTPublic {
	return highECC(tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384, 256, policyB384)
}

func highECC(curve tpm2.TPMECCCurve, nameAlg tpm2.TPMAlgID, bits tpm2.TPMKeyBits, policy string) tpm2.TPMTPublic {
	t := ecc(curve, nameAlg, highAttributes(), tpm2.TPMSECCParms{Symmetric: aesCFB(bits)})
	t.AuthPolicy.Buffer, _ = hex.DecodeString(policy) // a constant
	return t
}

// highRSA returns the template H-1.
func highRSA() tpm2.TPMTPublic {
	t := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: highAttributes(),
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: aesCFB(128), KeyBits: 2048}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{}),
	}
	t.AuthPolicy.Buffer, _ = hex.DecodeString(policyB256) // a constant
	return t
}
