package server

import (
	"strings"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// who says which callers may call an RPC.
type who uint8

const (
	nobody    who = iota // the zero value: what is not in the table is denied
	anybody              // without a certificate too
	identity             // any caller with a valid certificate
	operators            // callers with a valid operator's certificate
)

// access is the one table of who may call what. A test fails for an RPC that is served and not in it.
var access = map[string]who{
	brevetv1.EnrollmentService_Enroll_FullMethodName:            anybody, // the token is the proof
	brevetv1.EnrollmentService_Renew_FullMethodName:             identity,
	brevetv1.EnrollmentService_IssueCertificates_FullMethodName: operators,

	brevetv1.IdentityService_CreateIdentity_FullMethodName:  operators,
	brevetv1.IdentityService_GetIdentity_FullMethodName:     operators,
	brevetv1.IdentityService_ListIdentities_FullMethodName:  operators,
	brevetv1.IdentityService_SuspendIdentity_FullMethodName: operators,
	brevetv1.IdentityService_ResumeIdentity_FullMethodName:  operators,
	brevetv1.IdentityService_RetireIdentity_FullMethodName:  operators,
	brevetv1.IdentityService_CreateToken_FullMethodName:     operators,

	brevetv1.CertificateService_GetCertificate_FullMethodName:    operators,
	brevetv1.CertificateService_ListCertificates_FullMethodName:  operators,
	brevetv1.CertificateService_RevokeCertificate_FullMethodName: operators,

	brevetv1.CRLService_ListCRLs_FullMethodName:  operators,
	brevetv1.CRLService_ImportCRL_FullMethodName: operators,

	brevetv1.LogService_ListEntries_FullMethodName: operators,
	brevetv1.LogService_GetHead_FullMethodName:     operators,

	// Public knowledge: whether the server is up, and what its API looks like.
	"/grpc.health.v1.Health/Check":                                   anybody,
	"/grpc.health.v1.Health/List":                                    anybody,
	"/grpc.health.v1.Health/Watch":                                   anybody,
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      anybody,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": anybody,
}

// operatorPath opens the reserved paths of operators. Nobody but an operator is ever issued a certificate under it.
const operatorPath = "brevet/operator/"

func (c caller) isOperator() bool { return strings.HasPrefix(c.id.Path(), operatorPath) }
