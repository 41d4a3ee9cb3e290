// Lets the ingester read the audit containers of a storage account, and nothing else of it.
//   az deployment group create -g GROUP -f storage.bicep -p accountName=NAME principalId=OBJECT_ID

@description('Name of the storage account that diagnostic settings write to.')
param accountName string

@description('Object id of the identity that the ingester runs as.')
param principalId string

var containers = ['insights-logs-kube-audit', 'insights-logs-kube-audit-admin']

// Storage Blob Data Reader.
var reader = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '2a2b9908-6ea1-4ae2-8e65-a410df84e7d1')

resource account 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: accountName

  resource blobs 'blobServices' existing = {
    name: 'default'
  }
}

// Azure makes a container with its first record; made here, the role can be given before that.
resource container 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = [
  for name in containers: {
    parent: account::blobs
    name: name
  }
]

resource reads 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (name, i) in containers: {
    name: guid(account.id, name, principalId, reader)
    scope: container[i]
    properties: {
      roleDefinitionId: reader
      principalId: principalId
      principalType: 'ServicePrincipal'
    }
  }
]
