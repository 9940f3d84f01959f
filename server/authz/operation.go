package authz

// An Operation is something that a caller can request from a server, independent of the protocol. A package that serves
// a protocol maps its requests to operations. The zero value is not an operation, and no caller may call it.
type Operation string

// The operations. Each must be in the access table.
const (
	Enroll            Operation = "Enroll"
	Renew             Operation = "Renew"
	CreateChallenge   Operation = "CreateChallenge"
	GetTrustBundle    Operation = "GetTrustBundle"
	GetRenewalInfo    Operation = "GetRenewalInfo"
	IssueCertificates Operation = "IssueCertificates"

	// The operations of EST, besides Enroll and Renew.
	GetESTCACertificates Operation = "GetESTCACertificates"
	GetESTAttributes     Operation = "GetESTAttributes"
	RefuseESTOperation   Operation = "RefuseESTOperation" // of RFC 7030, but not offered

	CreateIdentity  Operation = "CreateIdentity"
	GetIdentity     Operation = "GetIdentity"
	ListIdentities  Operation = "ListIdentities"
	UpdateIdentity  Operation = "UpdateIdentity"
	SuspendIdentity Operation = "SuspendIdentity"
	ResumeIdentity  Operation = "ResumeIdentity"
	RetireIdentity  Operation = "RetireIdentity"
	CreateToken     Operation = "CreateToken"
	ListTokens      Operation = "ListTokens"
	RevokeToken     Operation = "RevokeToken"

	GetCertificate       Operation = "GetCertificate"
	ListCertificates     Operation = "ListCertificates"
	GetCertificateChain  Operation = "GetCertificateChain"
	RevokeCertificate    Operation = "RevokeCertificate"
	HoldCertificate      Operation = "HoldCertificate"
	UnholdCertificate    Operation = "UnholdCertificate"
	CreateBulkRevocation Operation = "CreateBulkRevocation"
	GetBulkRevocation    Operation = "GetBulkRevocation"
	ListBulkRevocations  Operation = "ListBulkRevocations"
	RevokeCompromisedKey Operation = "RevokeCompromisedKey"

	StartRotation Operation = "StartRotation"
	GetRotation   Operation = "GetRotation"
	ListRotations Operation = "ListRotations"
	StopRotation  Operation = "StopRotation"

	ListCRLs  Operation = "ListCRLs"
	ImportCRL Operation = "ImportCRL"

	ApplyPolicy   Operation = "ApplyPolicy"
	GetPolicy     Operation = "GetPolicy"
	ListPolicies  Operation = "ListPolicies"
	ExplainPolicy Operation = "ExplainPolicy"

	CreateExternalKey Operation = "CreateExternalKey"
	ListExternalKeys  Operation = "ListExternalKeys"
	RevokeExternalKey Operation = "RevokeExternalKey"
	ListAccounts      Operation = "ListAccounts"
	RevokeAccount     Operation = "RevokeAccount"

	ListEntries Operation = "ListEntries"
	GetHead     Operation = "GetHead"

	GetStats Operation = "GetStats"

	ACMEDirectory   Operation = "ACMEDirectory"   // directory and newNonce
	ACMEAccount     Operation = "ACMEAccount"     // newAccount, accounts and keyChange
	ACMEOrder       Operation = "ACMEOrder"       // newOrder, orders, authorizations and challenges
	ACMEFinalize    Operation = "ACMEFinalize"    // finalizing an order
	ACMECertificate Operation = "ACMECertificate" // downloading a certificate
	ACMERevoke      Operation = "ACMERevoke"      // revokeCert
	ACMERenewalInfo Operation = "ACMERenewalInfo" // renewalInfo

	ReflectServices Operation = "ReflectServices"

	CheckHealth Operation = "CheckHealth"
	ListHealth  Operation = "ListHealth"
	WatchHealth Operation = "WatchHealth"
)
